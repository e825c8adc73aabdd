# A Perl program that checks itself: hashes, sorting, a file, pipes and signals, rounds until DIR/stop exists.
use strict;
use warnings;
use IO::Handle;
use Time::HiRes qw(sleep time clock_gettime CLOCK_MONOTONIC setitimer ITIMER_REAL);
my $dir = shift or die "usage: work.pl DIR\n";

sub fail {
    my ($what) = @_;
    open my $f, '>', "$dir/result" or exit 2;
    print $f "FAIL work.pl: $what\n";
    print STDERR "$what\n";
    exit 1;
}
$SIG{__DIE__} = sub { fail("died: @_") };
my ($rounds, $alarms, %table, @stack) = (0, 0);
$SIG{ALRM} = sub { $alarms++ };
setitimer(ITIMER_REAL, 0.02, 0.02);
pipe(my $reader, my $writer) or fail("pipe: $!");
$writer->autoflush(1);
open my $log, '+>', "$dir/log" or fail("log: $!");
$log->autoflush(1);
open my $progress, '>', "$dir/progress" or fail("progress: $!");
$progress->autoflush(1);
my $last = clock_gettime(CLOCK_MONOTONIC);
until (-e "$dir/stop") {
    $rounds++;
    $table{"key $rounds.$_"} = { round => $rounds, list => [1 .. $_] } for 1 .. 20;
    push @stack, sub { my $n = shift; $n * $rounds };
    fail("table has " . keys(%table) . " entries") unless keys(%table) == 20 * $rounds;
    my $some = $rounds * 7919 % $rounds + 1;
    my $entry = $table{"key $some.20"};
    fail("an entry changed") unless $entry->{round} == $some && @{ $entry->{list} } == 20;
    my @sorted = sort { $a <=> $b } map { ($_ * 7919 + $rounds) % 1009 } 0 .. 300;
    for (1 .. 300) { fail("sort") if $sorted[$_ - 1] > $sorted[$_] }
    print $log "round $rounds ", join(',', @sorted[0 .. 5]), "\n";
    print $writer "message $rounds\n";
    if ($rounds > 5) {    # five messages are always in the pipe
        my $line = '';
        while (substr($line, -1) ne "\n") {
            my $got = sysread($reader, $line, 1, length $line);
            next if !defined $got && $!{EINTR};    # our own timer
            fail("pipe: $!") unless $got;
        }
        fail("pipe gave $line") unless $line eq "message " . ($rounds - 5) . "\n";
    }
    my $now = clock_gettime(CLOCK_MONOTONIC);
    fail("monotonic time went back") if $now < $last;
    $last = $now;
    fail("log has " . tell($log)) unless tell($log) == -s $log;
    sleep 0.003;
    seek $progress, 0, 0;
    printf $progress "%-20d\n", $rounds;
}
# At the end perl gives handlers back before it is gone.
setitimer(ITIMER_REAL, 0, 0);
fail("no round was finished") unless $rounds;
fail("the timer is dead: $alarms alarms in $rounds rounds") if $rounds > 100 && $alarms < 5;
seek $log, 0, 0;
my $lines = 0;
while (<$log>) { $lines++; fail("line $lines of the log: $_") unless /^round $lines \d/ }
fail("the log has $lines lines, wanted $rounds") unless $lines == $rounds;
open my $f, '>', "$dir/result" or exit 2;
print $f "ok\n";
