# HTTP server of four pre-forked processes that take turns to accept under a lock, as servers of the kind have always done. Writes go to
# one file, in which each child demands under a lock that a load's numbers have no gap. A child ends after 300 requests
# and the parent, which sleeps in wait, makes another.
#
# usage: prefork.pl PORT DIR
use strict; use warnings;
use Digest::MD5 qw(md5_hex); use Fcntl qw(:flock :seek); use IO::Handle; use POSIX (); use Socket;

my ($port, $dir) = @ARGV;
my @bodies = map { md5_hex("f$_") x (200 * $_ * $_) . "\n" } 0 .. 8;
my $listener;
socket($listener, PF_INET, SOCK_STREAM, 0) && setsockopt($listener, SOL_SOCKET, SO_REUSEADDR, 1) or die "socket: $!";
bind($listener, sockaddr_in($port, INADDR_ANY)) && listen($listener, 64) or die "bind: $!";

sub fail { open(my $out, '>>', "$dir/failed"); print $out "$$: @_\n"; close $out; POSIX::_exit(1) }

sub last_of {
    my ($file, $load) = @_;
    my $last = 0;
    seek($file, 0, SEEK_SET);
    while (<$file>) { my ($w, $n) = split; if ($w == $load) { fail("load $w: $n after $last") if $n != $last + 1; $last = $n } }
    return $last;
}

sub answer {
    my ($path, $file, $known) = @_;
    my ($w) = $path =~ /[?&]w=(\d+)/;
    my ($n) = $path =~ /[?&]n=(\d+)/;
    return last_of($file, $w) if $path =~ m{^/last\?};
    my ($i) = $path =~ m{^/f([1-8])\b} or return;
    if (defined $n) {
        flock($file, LOCK_EX) or fail("flock: $!");
        $known->{$w} = last_of($file, $w) if ($known->{$w} // -1) != $n - 1;
        fail("load $w: $n is asked for after $known->{$w}") if $known->{$w} != $n - 1;
        seek($file, 0, SEEK_END);
        syswrite($file, "$w $n $$\n") or fail("write: $!");
        $known->{$w} = $n;
        flock($file, LOCK_UN);
    }
    return $bodies[$i];
}

sub child {
    open(my $turn, '+<', "$dir/turn") or fail("turn: $!");
    open(my $file, '+<', "$dir/writes") or fail("writes: $!");
    my ($served, %known) = 0;
    while ($served < 300) {
        flock($turn, LOCK_EX) or fail("flock: $!");
        my $client;
        accept($client, $listener) or fail("accept: $!");
        flock($turn, LOCK_UN);
        $client->autoflush(1);
        while (defined(my $line = <$client>)) {
            my ($path) = $line =~ m{^GET (\S+) HTTP/1.1} or last;
            while (defined(my $header = <$client>)) { last if $header =~ /^\r?\n/ }
            my $body = answer($path, $file, \%known);
            my $status = defined $body ? '200 OK' : '404 Not Found';
            $body //= '';
            my $close = ++$served >= 300 ? "Connection: close\r\n" : '';
            print {$client} "HTTP/1.1 $status\r\nContent-Length: ", length $body, "\r\n$close\r\n", $body or last;
            last if $close;
        }
        close $client;
    }
    POSIX::_exit(0);
}

for my $name (qw(turn writes)) { open(my $file, '>>', "$dir/$name") or die "$name: $!" }
$SIG{PIPE} = 'IGNORE';
my %children;
$SIG{TERM} = sub { kill 'TERM', keys %children; exit 0 };
while (1) {
    while (keys %children < 4) {
        my $pid = fork() // fail("fork: $!");
        if (!$pid) { $SIG{TERM} = 'DEFAULT'; child() }
        $children{$pid} = 1;
    }
    my $pid = wait();
    fail("wait: $pid is not a child") if !delete $children{$pid};
    fail("child $pid ended with $?") if $?;
}
