//! The first program of the nested host: see `reapvm_nested::nested`.

fn main() {
    reapvm_nested::nested::main();
}
