//! The store of `kiln-engine` behind the [`Store`](crate::store::Store) trait.
