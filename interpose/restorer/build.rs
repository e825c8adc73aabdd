//! Link options: no libc, no start files, at an address where no program is.

fn main() {
    for option in [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--image-base=0x6f6c6f680000",
        "-Wl,--build-id=none",
    ] {
        println!("cargo::rustc-link-arg-bins={option}");
    }
    println!("cargo::rerun-if-changed=build.rs");
}
