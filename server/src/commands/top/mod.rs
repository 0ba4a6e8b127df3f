//! top
#[allow(dead_code)]
mod figures;
#[allow(dead_code)]
mod screen;
