//! Link options of `libholo.so`.

fn main() {
    // The constructor runs before everybody else's.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,initfirst");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,now");
    println!("cargo::rustc-cdylib-link-arg=-Wl,--as-needed");
    println!("cargo::rerun-if-changed=build.rs");
}
