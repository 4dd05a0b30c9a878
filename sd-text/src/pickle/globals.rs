//! The table of the globals that a pickle may name, and what each of them becomes.
//!
//! Nothing here is ever called. A global stands for one of the few things that this reader builds
//! itself, or it is inert: only its name is kept, and it has no effect.

use safetensors::Dtype;

/// What a global becomes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// A dictionary. A call may pass pairs.
    Dict,
    /// A dictionary whose first argument is the function for missing keys.
    DefaultDict,
    List,
    Tuple,
    Set,
    /// `bytes` and `bytearray`.
    Bytes,
    /// `_codecs.encode`, with which pickles before protocol 3 write bytes.
    Encode,
    Rebuild(Rebuild),
    /// A wrapper of a tensor. Its first argument is the tensor.
    Parameter,
    /// A wrapper of a tensor that is called with a function, a class and the function's arguments.
    FromType,
    /// A class of storages, with the type of its values if weights can have that type.
    Storage(Option<Dtype>),
    /// A class of storages without a type. Its length is in bytes.
    UntypedStorage,
    Type(Dtype),
    /// A class that may be named but not called, because what a call would make is not supported.
    Class,
    /// A global that harmless files name. It is never called: a call becomes an inert value too.
    Inert,
}

/// The functions that make a tensor from a storage, with their arguments.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Rebuild {
    /// `(storage, offset, size, stride)`
    V1,
    /// `(storage, offset, size, stride, requires_grad, hooks, metadata = None)`
    V2,
    /// `(storage, offset, size, stride, requires_grad, hooks, dtype, metadata = None)`
    V3,
}

/// The package of `pytorch_lightning`'s callbacks. A checkpoint names the callbacks of its
/// training, so every class in the package is inert.
const CALLBACKS: &str = "pytorch_lightning.callbacks";

/// Modules under their [current name](canonical), names in them, and what these become.
const TABLE: &[(&str, &[&str], Kind)] = &[
    ("collections", &["OrderedDict", "Counter"], Kind::Dict),
    ("collections", &["defaultdict"], Kind::DefaultDict),
    ("builtins", &["dict"], Kind::Dict),
    ("builtins", &["list"], Kind::List),
    ("builtins", &["tuple"], Kind::Tuple),
    ("builtins", &["set", "frozenset"], Kind::Set),
    ("builtins", &["bytes", "bytearray"], Kind::Bytes),
    ("builtins", PLAIN, Kind::Inert),
    ("_codecs", &["encode"], Kind::Encode),
    (
        "torch._utils",
        &["_rebuild_tensor"],
        Kind::Rebuild(Rebuild::V1),
    ),
    (
        "torch._utils",
        &["_rebuild_tensor_v2"],
        Kind::Rebuild(Rebuild::V2),
    ),
    (
        "torch._utils",
        &["_rebuild_tensor_v3"],
        Kind::Rebuild(Rebuild::V3),
    ),
    ("torch._utils", PARAMETERS, Kind::Parameter),
    (
        "torch.nn.parameter",
        &["Parameter", "Buffer"],
        Kind::Parameter,
    ),
    ("torch.nn", &["Parameter"], Kind::Parameter),
    ("torch._tensor", &["_rebuild_from_type_v2"], Kind::FromType),
    ("torch", &["Size"], Kind::Tuple),
    ("torch", &["Tensor"], Kind::Class),
    ("torch", &["device", "strided"], Kind::Inert),
    ("torch.serialization", &["_get_layout"], Kind::Inert),
    (
        "torch.nn.modules.container",
        &["ParameterDict"],
        Kind::Inert,
    ),
    (
        "torch",
        &["UntypedStorage", "_UntypedStorage"],
        Kind::UntypedStorage,
    ),
    (
        "torch.storage",
        &["UntypedStorage", "_UntypedStorage"],
        Kind::UntypedStorage,
    ),
    (
        "numpy._core.multiarray",
        &["scalar", "_reconstruct"],
        Kind::Inert,
    ),
    ("numpy._core.numeric", &["_frombuffer"], Kind::Inert),
    ("numpy", NUMPY, Kind::Inert),
    (CALLBACKS, &["model_checkpoint"], Kind::Inert),
    (
        "pytorch_lightning.utilities.parsing",
        &["AttributeDict"],
        Kind::Inert,
    ),
    (
        "lightning_fabric.utilities.data",
        &["AttributeDict"],
        Kind::Inert,
    ),
    ("argparse", &["Namespace"], Kind::Inert),
    ("typing", &["Any"], Kind::Inert),
    ("copyreg", &["_reconstructor"], Kind::Inert),
    ("pathlib", PATHS, Kind::Inert),
    ("pathlib._local", PATHS, Kind::Inert),
    ("omegaconf.dictconfig", &["DictConfig"], Kind::Inert),
    ("omegaconf.listconfig", &["ListConfig"], Kind::Inert),
    (
        "omegaconf.base",
        &["ContainerMetadata", "Metadata"],
        Kind::Inert,
    ),
    ("omegaconf.nodes", OMEGACONF, Kind::Inert),
];

const PATHS: &[&str] = &["PosixPath", "WindowsPath"];
const PLAIN: &[&str] = &["bool", "int", "float", "complex", "str", "object"];
const PARAMETERS: &[&str] = &["_rebuild_parameter", "_rebuild_parameter_with_state"];
const OMEGACONF: &[&str] = &[
    "AnyNode",
    "BooleanNode",
    "FloatNode",
    "IntegerNode",
    "StringNode",
];
const NUMPY: &[&str] = &[
    "dtype", "ndarray", "bool_", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32",
    "uint64", "float16", "float32", "float64",
];

/// The storage classes in `torch` and `torch.cuda`. `None` means a type that no weights have.
const STORAGES: &[(&str, Option<Dtype>)] = &[
    ("DoubleStorage", Some(Dtype::F64)),
    ("FloatStorage", Some(Dtype::F32)),
    ("HalfStorage", Some(Dtype::F16)),
    ("BFloat16Storage", Some(Dtype::BF16)),
    ("LongStorage", Some(Dtype::I64)),
    ("IntStorage", Some(Dtype::I32)),
    ("ShortStorage", Some(Dtype::I16)),
    ("CharStorage", Some(Dtype::I8)),
    ("ByteStorage", Some(Dtype::U8)),
    ("BoolStorage", Some(Dtype::BOOL)),
    ("ComplexFloatStorage", Some(Dtype::C64)),
    ("ComplexDoubleStorage", None),
    ("QInt8Storage", None),
    ("QUInt8Storage", None),
    ("QInt32Storage", None),
    ("QUInt4x2Storage", None),
    ("QUInt2x4Storage", None),
];

const TYPES: &[(&str, Dtype)] = &[
    ("float64", Dtype::F64),
    ("double", Dtype::F64),
    ("float32", Dtype::F32),
    ("float", Dtype::F32),
    ("float16", Dtype::F16),
    ("half", Dtype::F16),
    ("bfloat16", Dtype::BF16),
    ("float8_e4m3fn", Dtype::F8_E4M3),
    ("float8_e5m2", Dtype::F8_E5M2),
    ("float8_e8m0fnu", Dtype::F8_E8M0),
    ("float8_e4m3fnuz", Dtype::F8_E4M3FNUZ),
    ("float8_e5m2fnuz", Dtype::F8_E5M2FNUZ),
    ("int64", Dtype::I64),
    ("long", Dtype::I64),
    ("int32", Dtype::I32),
    ("int", Dtype::I32),
    ("int16", Dtype::I16),
    ("short", Dtype::I16),
    ("int8", Dtype::I8),
    ("uint8", Dtype::U8),
    ("uint16", Dtype::U16),
    ("uint32", Dtype::U32),
    ("uint64", Dtype::U64),
    ("bool", Dtype::BOOL),
    ("complex64", Dtype::C64),
];

/// Returns what a global becomes, or `None` if no harmless file names it.
pub(super) fn lookup(module: &str, name: &str) -> Option<Kind> {
    let module = canonical(module);
    if module == "torch" || module == "torch.cuda" {
        let storage = STORAGES.iter().find(|(known, _)| *known == name);
        if let Some(&(_, dtype)) = storage {
            return Some(Kind::Storage(dtype));
        }
    }
    if module == "torch"
        && let Some(&(_, dtype)) = TYPES.iter().find(|(known, _)| *known == name)
    {
        return Some(Kind::Type(dtype));
    }
    let row = TABLE
        .iter()
        .find(|(in_module, names, _)| *in_module == module && names.contains(&name));
    if let Some(&(_, _, kind)) = row {
        return Some(kind);
    }
    is_callback(&module, name).then_some(Kind::Inert)
}

/// Returns the current name of a module that Python, numpy or lightning has renamed.
fn canonical(module: &str) -> String {
    const RENAMED: [(&str, &str); 4] = [
        ("__builtin__", "builtins"),
        ("copy_reg", "copyreg"),
        ("numpy.core", "numpy._core"),
        ("lightning.pytorch", "pytorch_lightning"),
    ];
    let renamed = RENAMED.iter().find_map(|(old, new)| {
        let rest = module.strip_prefix(old)?;
        (rest.is_empty() || rest.starts_with('.')).then(|| format!("{new}{rest}"))
    });
    renamed.unwrap_or_else(|| module.to_owned())
}

/// Whether this is a class in the callbacks package: a single name in CamelCase, in a module of the
/// package. A path of attributes such as `ModelCheckpoint.x.y` is not.
fn is_callback(module: &str, name: &str) -> bool {
    let inside = module.strip_prefix(CALLBACKS);
    let in_package = inside.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    in_package
        && name.starts_with(|first: char| first.is_ascii_uppercase())
        && name.chars().all(|c| c.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_names_mean_the_same() {
        for (module, name, kind) in [
            ("__builtin__", "set", Kind::Set),
            ("torch.cuda", "HalfStorage", Kind::Storage(Some(Dtype::F16))),
            ("numpy.core.multiarray", "scalar", Kind::Inert),
            (
                "lightning.pytorch.callbacks.early_stopping",
                "EarlyStopping",
                Kind::Inert,
            ),
            ("torch", "bfloat16", Kind::Type(Dtype::BF16)),
        ] {
            assert_eq!(lookup(module, name), Some(kind), "{module}.{name}");
        }
    }

    #[test]
    fn near_misses_are_none() {
        for (module, name) in [
            ("builtins", "eval"),
            ("builtins", "getattr"),
            ("torch", "load"),
            ("torch.cuda", "float16"),
            ("torch.hub", "Size"),
            ("numpy", "load"),
            ("numpy.corely", "scalar"),
            ("pytorch_lightning.callbacks", "os.system"),
            ("pytorch_lightning.callbacks", "ModelCheckpoint.x"),
            ("pytorch_lightning.callbacks.os", "system"),
            ("pytorch_lightning.callbacksX", "Model"),
            ("pytorch_lightning", "Trainer"),
            ("", "set"),
            ("builtins.set", ""),
        ] {
            assert_eq!(lookup(module, name), None, "{module}.{name}");
        }
    }
}
