//! Networks that guide a model: ControlNets, T2I-Adapters and IP-Adapters.

mod files;

pub(crate) use self::files::{ControlFiles, name_of};
