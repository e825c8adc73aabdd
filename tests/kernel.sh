#!/bin/sh
# Runs tests on another kernel than this machine's, Debian's own if not told otherwise, in a virtual machine that has a copy of this
# system: tests/kernel.sh [FILTER [PACKAGE]]. FILTER is nextest's, or `bench PART` for a part of `make bench`; PACKAGE a Debian package of a
# kernel.
#
# Takes root (a loop device), 14 GiB of disk below $DIR, 6 GiB of memory. Without KVM (ACCEL=kvm where it works) all is some ten times slower,
# and tests that measure time fail.
set -eu
FILTER=${1:-'test(/::user$/)'}
PACKAGE=${2:-linux-image-amd64}
DIR=${DIR:-/var/tmp/holo-kernel}
ACCEL=${ACCEL:-tcg,thread=multi}
SECONDS_MAX=${SECONDS_MAX:-7200}
TREE=$(cd "$(dirname "$0")/.." && pwd)
MODULES="virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk crc16 crc32c_generic mbcache jbd2 ext4"

say() { echo "kernel: $*"; }
[ "$(id -u)" = 0 ] || { say "run it as root: it mounts the machine's disk"; exit 1; }
missing=
for p in qemu-system-x86 kmod cpio; do dpkg-query -W -f='${Status}' $p 2>/dev/null | grep -q 'ok installed' || missing="$missing $p"; done
[ -z "$missing" ] || { say "installing Debian packages:$missing"; sh "$TREE/tests/install.sh" $missing; }

mkdir -p "$DIR" && cd "$DIR"
trap 'mountpoint -q "$DIR/disk" && umount "$DIR/disk"; true' EXIT

# A package that stands for the newest one depends on it.
newest=$(apt-cache depends "$PACKAGE" | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
PACKAGE=${newest:-$PACKAGE}
if [ ! -e "$PACKAGE/boot" ]; then
    say "fetching $PACKAGE"
    rm -f -- "$PACKAGE"_*.deb
    apt-get -q download "$PACKAGE"
    dpkg -x "$PACKAGE"_*.deb "$PACKAGE"
fi
version=$(ls "$PACKAGE/lib/modules")
# Not installed: it takes the place of another package.
[ -e busybox/bin/busybox ] || { apt-get -q download busybox-static && dpkg -x busybox-static_*.deb busybox; }

say "making the machine's disk"
rm -rf first disk.img && mkdir -p first/bin first/mods first/new first/proc first/dev disk
cp busybox/bin/busybox first/bin/
for module in $MODULES; do cp "$(find "$PACKAGE/lib/modules" -name "$module.ko")" first/mods/; done
cat > first/init <<INIT
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for module in $MODULES; do /bin/busybox insmod /mods/\$module.ko; done
/bin/busybox sleep 0.5
/bin/busybox mount -t ext4 /dev/vda /new || /bin/busybox poweroff -f
exec /bin/busybox switch_root /new /holo/init
INIT
chmod +x first/init
(cd first && find . | cpio -o -H newc --quiet | gzip > ../first.gz)
truncate -s 40G disk.img
mkfs.ext4 -q -F disk.img
mount -o loop disk.img disk
for dir in usr etc bin sbin lib lib64; do cp -a "/$dir" disk/; done
cp -a "$PACKAGE/lib/modules" disk/usr/lib/
depmod -b disk/usr "$version" 2>/dev/null || depmod -b disk "$version"
(cd disk && mkdir -p dev home holo proc root run sys tmp var/tmp var/lib && chmod 1777 tmp var/tmp && mkdir -p "./$TREE/target/release")
cp -a /var/lib/dpkg disk/var/lib/ 2>/dev/null || true
(cd "$TREE" && tar -c --exclude ./target --exclude ./fuzz/target --exclude ./.git .) | tar -x -C "disk/$TREE"
programs="holo holod holo-restorer libholo.so"
case "$FILTER" in
bench\ *) (cd "$TREE" && cargo build --release --quiet -p holo-tests --bin holo-bench) && programs="$programs holo-bench" ;;
esac
for program in $programs; do cp "$TREE/target/release/$program" "disk/$TREE/target/release/"; done
(cd "$TREE" && cargo nextest archive --cargo-quiet -p holo-tests --archive-file "$DIR/disk/holo/tests.tar.zst")
cp "$(command -v cargo-nextest)" disk/holo/
cat > disk/holo/nextest.toml <<'NEXTEST'
[profile.kernel]
slow-timeout = { period = "120s", terminate-after = 3 }
fail-fast = false
failure-output = "immediate"
NEXTEST
printf '%s\n' "$FILTER" > disk/holo/filter
case "$FILTER" in
bench\ *) run="env HOLO_BENCH_MIB=${HOLO_BENCH_MIB:-256} $TREE/target/release/holo-bench ${FILTER#bench }" ;;
*) run="./cargo-nextest nextest run --archive-file tests.tar.zst --workspace-remap $TREE --extract-to $TREE --extract-overwrite \
    --tool-config-file holo:/holo/nextest.toml --profile kernel -j 2 -E \"\$(cat filter)\"" ;;
esac
cat > disk/holo/init <<INIT
#!/bin/bash
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb CI=true
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -o remount,rw /; mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /dev/mqueue
mount -t devpts -o mode=620,gid=5,ptmxmode=666 devpts /dev/pts; ln -sf pts/ptmx /dev/ptmx; ln -sf /proc/self/fd /dev/fd
mount -t tmpfs -o mode=1777 shm /dev/shm; mount -t mqueue mqueue /dev/mqueue; mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tmpfs run /run; ip link set lo up; hostname holo
for module in veth bridge; do modprobe \$module; done
cd /holo
setsid -w $run < /dev/null > /dev/ttyS0 2>&1
echo "ended with \$?" > /dev/ttyS0
sync; mount -o remount,ro /; echo o > /proc/sysrq-trigger; sleep 9
INIT
chmod +x disk/holo/init
umount disk

say "Linux $version, tests: $FILTER"
timeout "$SECONDS_MAX" qemu-system-x86_64 -M q35 -accel "$ACCEL" -cpu max -smp 2 -m 6G -nodefaults -no-user-config -nographic \
    -serial stdio -no-reboot -kernel "$PACKAGE/boot/vmlinuz-$version" -initrd first.gz -append "console=ttyS0 panic=-1 quiet" \
    -drive file=disk.img,if=virtio,format=raw,cache=unsafe < /dev/null | tee log
say "what it said is in $DIR/log"
grep -q "^ended with 0" log
