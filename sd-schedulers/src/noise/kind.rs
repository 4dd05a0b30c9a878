use std::fmt;
use std::str::FromStr;

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, Error as _, MapAccess, Visitor},
    ser::SerializeMap,
};

use super::{
    BrownianTree, CARDS, NoiseError, NoiseSource, NumpyRng, Philox, RandNormal, TorchRng,
    cuda_threads,
};
use crate::names::UnknownName;
use crate::names::unknown;
use crate::printable::printable;

/// The generator that a seed is for.
///
/// In serde, it is its [name](Self::NAMED), such as `"philox"`, or an object for a graphics card:
/// `{"cuda": {"threads": 196608}}` or `{"cuda": {"card": "RTX 4090"}}`. Both objects are read, and
/// the first form is written.
///
/// Default: [`NoiseKind::Torch`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NoiseKind {
    /// torch on a CPU ([`TorchRng`]), bit for bit: most diffusers programs, ComfyUI, and WebUI with
    /// "CPU".
    #[default]
    Torch,
    /// WebUI's "NV" ([`Philox::webui`]), bit for bit.
    Philox,
    /// torch on a CUDA device ([`Philox::cuda`]), within 1e-5: WebUI with "GPU".
    Cuda {
        /// The number of threads that the device holds: see [`cuda_threads`].
        threads: u32,
    },
    /// numpy ([`NumpyRng`]), bit for bit: diffusers' old ONNX pipelines. Seeds up to 2³² − 1.
    Numpy,
    /// xoshiro256++ from the `rand` crate ([`RandNormal`]). It is the fastest kind, and no other
    /// program has the same noise.
    Rand,
}

impl NoiseKind {
    /// The kinds that have a name, for a command line and for serde.
    pub const NAMED: [(&'static str, Self); 4] = [
        ("torch", Self::Torch),
        ("philox", Self::Philox),
        ("numpy", Self::Numpy),
        ("rand", Self::Rand),
    ];

    /// Returns the name of the kind, if it is one of [`NAMED`](Self::NAMED).
    pub fn name(&self) -> Option<&'static str> {
        let named = Self::NAMED.iter().find(|(_, kind)| kind == self);
        named.map(|(name, _)| *name)
    }

    /// Returns the name of the kind, which is `cuda` for any number of threads.
    fn kind(&self) -> &'static str {
        match self {
            Self::Torch => "torch",
            Self::Philox => "philox",
            Self::Cuda { .. } => "cuda",
            Self::Numpy => "numpy",
            Self::Rand => "rand",
        }
    }

    /// Returns a generator with this seed.
    ///
    /// # Errors
    /// [`NoiseError::NumpySeed`] if numpy refuses the seed.
    ///
    /// ```
    /// use sd_schedulers::{NoiseSource, noise::NoiseKind};
    ///
    /// let mut noise = [0.0; 4];
    /// NoiseKind::Torch.source(42)?.fill(&mut noise);
    /// assert!(noise.iter().all(|value| value.abs() < 6.0));
    /// assert!(NoiseKind::Numpy.source(1 << 32).is_err());
    /// # Ok::<(), sd_schedulers::noise::NoiseError>(())
    /// ```
    pub fn source(&self, seed: u64) -> Result<Box<dyn NoiseSource + Send>, NoiseError> {
        self.check(seed)?;
        let source: Box<dyn NoiseSource + Send> = match *self {
            Self::Torch => Box::new(TorchRng::new(seed)),
            Self::Philox => Box::new(Philox::webui(seed)),
            Self::Cuda { threads } => Box::new(Philox::cuda(seed, threads)),
            Self::Numpy => Box::new(NumpyRng::new(seed as u32)),
            Self::Rand => Box::new(xoshiro(seed)),
        };
        Ok(source)
    }

    /// Returns the Brownian tree of a run over `sigmas`, with noise of this kind, for `len` values
    /// at a time. See [`BrownianTree::over`].
    ///
    /// # Errors
    /// - [`NoiseError::Range`] if no sigma is above 0, or one is above 10⁷.
    /// - [`NoiseError::NumpySeed`] if numpy refuses the seed.
    pub fn tree(
        &self,
        seed: u64,
        sigmas: &[f32],
        len: usize,
    ) -> Result<Box<dyn NoiseSource + Send>, NoiseError> {
        self.check(seed)?;
        let tree: Box<dyn NoiseSource + Send> = match *self {
            Self::Torch => Box::new(BrownianTree::over(sigmas, len, seed, TorchRng::new)?),
            Self::Philox => Box::new(BrownianTree::over(sigmas, len, seed, Philox::webui)?),
            Self::Cuda { threads } => {
                let source = move |seed| Philox::cuda(seed, threads);
                Box::new(BrownianTree::over(sigmas, len, seed, source)?)
            }
            Self::Numpy => {
                let source = |seed: u64| NumpyRng::new(seed as u32);
                Box::new(BrownianTree::over(sigmas, len, seed, source)?)
            }
            Self::Rand => Box::new(BrownianTree::over(sigmas, len, seed, xoshiro)?),
        };
        Ok(tree)
    }

    /// Checks that there is a generator with this seed.
    pub(super) fn check(&self, seed: u64) -> Result<(), NoiseError> {
        match self {
            Self::Numpy if seed > u64::from(u32::MAX) => Err(NoiseError::NumpySeed(seed)),
            _ => Ok(()),
        }
    }
}

fn xoshiro(seed: u64) -> RandNormal<Xoshiro256PlusPlus> {
    RandNormal::new(Xoshiro256PlusPlus::seed_from_u64(seed))
}

impl FromStr for NoiseKind {
    type Err = UnknownName;

    /// Parses one of the names in [`NAMED`](NoiseKind::NAMED), in upper or lower case.
    ///
    /// # Errors
    /// [`UnknownName`] if there is no such name. It lists known names.
    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let named = |(known, _): &&(&str, Self)| known.eq_ignore_ascii_case(name);
        match Self::NAMED.iter().find(named) {
            Some((_, kind)) => Ok(*kind),
            None => Err(UnknownName {
                what: "kind of noise",
                name: printable(name),
                known: Self::NAMED.iter().map(|(known, _)| *known).collect(),
            }),
        }
    }
}

/// Writes the [name](NoiseKind::name), which [`FromStr`] reads. The noise of a graphics card is
/// written as the JSON that serde reads.
///
/// ```
/// use sd_schedulers::noise::NoiseKind;
///
/// assert_eq!(NoiseKind::Philox.to_string(), "philox");
/// let card = NoiseKind::Cuda { threads: 196608 };
/// assert_eq!(card.to_string(), r#"{"cuda":{"threads":196608}}"#);
/// ```
impl fmt::Display for NoiseKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?),
        }
    }
}

impl Serialize for NoiseKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self::Cuda { threads } = *self else {
            return serializer.serialize_str(self.kind());
        };
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(self.kind(), &Device::Threads(threads))?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for NoiseKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Written)
    }
}

/// The serde form of a kind.
struct Written;

impl<'de> Visitor<'de> for Written {
    type Value = NoiseKind;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            r#"a kind of noise: its name, such as "torch", or {CUDA}"#
        )
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<NoiseKind, E> {
        if name.eq_ignore_ascii_case("cuda") {
            let problem = format!("\"{name}\" without a graphics card, expected {CUDA}");
            return Err(E::custom(problem));
        }
        name.parse().map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<NoiseKind, A::Error> {
        let object = de::value::MapAccessDeserializer::new(map);
        let Object { cuda } = Object::deserialize(object)?;
        let (Device::Threads(threads) | Device::Card(threads)) = cuda;
        Ok(NoiseKind::Cuda { threads })
    }
}

/// How the noise of a graphics card is written.
const CUDA: &str = r#"{"cuda": {"card": "RTX 4090"}} or {"cuda": {"threads": 196608}}"#;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Object {
    cuda: Device,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Device {
    Threads(u32),
    /// The threads of a card, which is read by its name.
    #[serde(skip_serializing)]
    Card(#[serde(deserialize_with = "threads_of_card")] u32),
}

fn threads_of_card<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let name = String::deserialize(deserializer)?;
    let cards = CARDS.iter().map(|(known, _)| *known);
    cuda_threads(&name).ok_or_else(|| D::Error::custom(unknown("card", &name, cards)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_serde() {
        for (name, kind) in NoiseKind::NAMED {
            assert_eq!(name.to_uppercase().parse(), Ok(kind));
            assert_eq!((kind.name(), kind.kind()), (Some(name), name));
            assert_eq!(kind.to_string().parse(), Ok(kind));
            let json = serde_json::to_string(&kind).unwrap();
            assert_eq!(json, format!("{name:?}"));
            assert_eq!(serde_json::from_str::<NoiseKind>(&json).unwrap(), kind);
        }
        let card = r#"{"cuda":{"card":"NVIDIA GeForce rtx 4090"}}"#;
        let threads = r#"{"cuda":{"threads":196608}}"#;
        for json in [card, threads] {
            let kind: NoiseKind = serde_json::from_str(json).unwrap();
            assert_eq!(kind, NoiseKind::Cuda { threads: 196_608 });
            assert_eq!(serde_json::to_string(&kind).unwrap(), threads);
        }
        for (wrong, message) in [
            (
                r#""mt""#,
                "\"mt\" is no kind of noise, expected torch, philox, numpy, rand",
            ),
            (
                r#"{"cuda":{"card":"RTX 4099"}}"#,
                "\"RTX 4099\" is no card, expected RTX 4090,",
            ),
            (r#"{"cuda":{"threads":1,"card":"T4"}}"#, "expected"),
            (r#"{"cuda":{"threads":5000000000}}"#, "expected u32"),
            (r#"{"cud":{"threads":1}}"#, "unknown field `cud`"),
            (
                r#""CUDA""#,
                "without a graphics card, expected {\"cuda\": {\"card\"",
            ),
            (
                "5",
                "a kind of noise: its name, such as \"torch\", or {\"cuda\"",
            ),
        ] {
            let error = serde_json::from_str::<NoiseKind>(wrong).unwrap_err();
            assert!(error.to_string().contains(message), "{error}");
        }
    }
}
