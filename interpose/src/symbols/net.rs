//! Descriptors and sockets: calls that may block on them.

use super::table;
use holo_abi::sysno as nr;
use libc::{c_int, c_uint, c_void, iovec, mmsghdr, msghdr, size_t, sockaddr, socklen_t, ssize_t, timespec};

type Buffer = *mut c_void;
type Data = *const c_void;

table! {
    read(fd: c_int, to: Buffer, bytes: size_t) -> ssize_t = wait(nr::read, fd, to, bytes);
    __read(fd: c_int, to: Buffer, bytes: size_t) -> ssize_t = wait(nr::read, fd, to, bytes);
    __read_chk(fd: c_int, to: Buffer, bytes: size_t, room: size_t) -> ssize_t = own(
        if bytes > room { real()(fd, to, bytes, room) } else { table!(@wait nr::read, fd, to, bytes) });
    readv(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t = wait(nr::readv, fd, parts, count);
    write(fd: c_int, from: Data, bytes: size_t) -> ssize_t = wait(nr::write, fd, from, bytes);
    __write(fd: c_int, from: Data, bytes: size_t) -> ssize_t = wait(nr::write, fd, from, bytes);
    writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t = wait(nr::writev, fd, parts, count);

    recv(fd: c_int, to: Buffer, bytes: size_t, flags: c_int) -> ssize_t =
        wait(nr::recvfrom, fd, to, bytes, flags, 0, 0);
    __recv_chk(fd: c_int, to: Buffer, bytes: size_t, room: size_t, flags: c_int) -> ssize_t = own(
        if bytes > room { real()(fd, to, bytes, room, flags) }
        else { table!(@wait nr::recvfrom, fd, to, bytes, flags, 0, 0) });
    recvfrom(fd: c_int, to: Buffer, bytes: size_t, flags: c_int, who: *mut sockaddr, len: *mut socklen_t)
        -> ssize_t = wait(nr::recvfrom, fd, to, bytes, flags, who, len);
    __recvfrom_chk(fd: c_int, to: Buffer, bytes: size_t, room: size_t, flags: c_int, who: *mut sockaddr,
        len: *mut socklen_t) -> ssize_t = own(
        if bytes > room { real()(fd, to, bytes, room, flags, who, len) }
        else { table!(@wait nr::recvfrom, fd, to, bytes, flags, who, len) });
    recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t = wait(nr::recvmsg, fd, message, flags);
    recvmmsg(fd: c_int, list: *mut mmsghdr, count: c_uint, flags: c_int, timeout: *mut timespec) -> c_int =
        wait(nr::recvmmsg, fd, list, count, flags, timeout);

    send(fd: c_int, from: Data, bytes: size_t, flags: c_int) -> ssize_t =
        wait(nr::sendto, fd, from, bytes, flags, 0, 0);
    __send(fd: c_int, from: Data, bytes: size_t, flags: c_int) -> ssize_t =
        wait(nr::sendto, fd, from, bytes, flags, 0, 0);
    sendto(fd: c_int, from: Data, bytes: size_t, flags: c_int, who: *const sockaddr, len: socklen_t)
        -> ssize_t = wait(nr::sendto, fd, from, bytes, flags, who, len);
    sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t = wait(nr::sendmsg, fd, message, flags);
    sendmmsg(fd: c_int, list: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int =
        wait(nr::sendmmsg, fd, list, count, flags);

    // A socket's time-outs are kept over a park once they are known.
    setsockopt(fd: c_int, level: c_int, name: c_int, value: Data, len: socklen_t) -> c_int =
        call(nr::setsockopt, fd, level, name, value, len);

    accept(fd: c_int, who: *mut sockaddr, len: *mut socklen_t) -> c_int = wait(nr::accept, fd, who, len);
    accept4(fd: c_int, who: *mut sockaddr, len: *mut socklen_t, flags: c_int) -> c_int =
        wait(nr::accept4, fd, who, len, flags);
    connect(fd: c_int, who: *const sockaddr, len: socklen_t) -> c_int = wait(nr::connect, fd, who, len);
    __connect(fd: c_int, who: *const sockaddr, len: socklen_t) -> c_int = wait(nr::connect, fd, who, len);
}
