//! The arithmetic of each adapter format.
//!
//! These are pure functions of a weight and the factors that an adapter file has for it. A weight
//! has the shape `[out, in]` for a linear layer, `[out, in, height, width]` for a convolution, and
//! `[channels]` for a norm. Every function first checks the shapes of its factors, so that no
//! factor is read out of bounds. The checks need shapes alone, which allows a whole file to be
//! checked before any number is read.

mod dora;
mod full;
mod glora;
mod ia3;
mod loha;
mod lokr;
mod lora;
mod oft;
mod parts;

pub(crate) use self::{
    lora::low_rank,
    parts::{Dims, Factor, Misfit, Part, Parts, Shaped},
};

/// The format of one module of an adapter file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Format {
    /// Low-rank factors. With a factor between them, as LoCon has it for convolutions, or without.
    Lora,
    /// The product, number by number, of two low-rank matrices.
    Loha,
    /// One factor for each input or each output.
    Ia3,
    /// A Kronecker product.
    Lokr,
    /// A difference as large as the weight itself.
    Full,
    /// The difference of a norm's weight.
    Norm,
    /// Low-rank factors, some of which multiply the weight itself.
    Glora,
    /// Rotations of the outputs, in blocks or in butterflies.
    Oft,
}

/// How a module changes its weight, apart from the factors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Strength {
    /// The factor of the format's own difference, such as alpha divided by the rank.
    pub scale: f32,
    /// The factor of the whole change, which the user sets.
    pub multiplier: f32,
    /// The number of leading ranks of a LoRA that are used. `None` uses all.
    pub rank: Option<usize>,
}

impl Format {
    /// Recognises the format by the parts of a module, in WebUI's order. Returns `None` if the
    /// parts are not enough for any format.
    pub fn of<T>(parts: &Parts<T>) -> Option<Self> {
        let has = |part| parts.get(part).is_some();
        let any = |part| parts.iter().any(|(is, _)| is == part);
        Some(match () {
            () if any(Part::Up) || any(Part::Down) => Self::Lora,
            () if any(Part::HadaW1A) || any(Part::HadaW2A) => Self::Loha,
            () if has(Part::Ia3) && has(Part::OnInput) => Self::Ia3,
            () if any(Part::LokrW1) || any(Part::LokrW1A) => Self::Lokr,
            () if any(Part::Diff) => Self::Full,
            () if any(Part::WNorm) => Self::Norm,
            () if any(Part::GloraA1) => Self::Glora,
            () if any(Part::OftBlocks) || any(Part::OftDiag) => Self::Oft,
            () => return None,
        })
    }

    /// Whether a module of this format has a use for a tensor. The differences of biases are not
    /// part of a format.
    pub fn uses(self, part: Part) -> bool {
        use Part::*;
        match part {
            Alpha | Scale | DoraScale | Magnitude | Bias => true,
            Up | Down | Mid => self == Self::Lora,
            HadaW1A | HadaW1B | HadaT1 | HadaW2A | HadaW2B | HadaT2 => self == Self::Loha,
            Ia3 | OnInput => self == Self::Ia3,
            LokrW1 | LokrW1A | LokrW1B | LokrW2 | LokrW2A | LokrW2B | LokrT2 => self == Self::Lokr,
            Diff => self == Self::Full,
            WNorm => self == Self::Norm,
            DiffB | BNorm => false,
            GloraA1 | GloraA2 | GloraB1 | GloraB2 | GloraBm => self == Self::Glora,
            OftBlocks | OftDiag | Rescale => self == Self::Oft,
        }
    }

    /// Returns the name for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lora => "LoRA",
            Self::Loha => "LoHa",
            Self::Ia3 => "IA³",
            Self::Lokr => "LoKr",
            Self::Full => "full difference",
            Self::Norm => "norm difference",
            Self::Glora => "GLoRA",
            Self::Oft => "OFT",
        }
    }

    /// Checks the factors against a weight, and returns the rank that alpha is divided by, if this
    /// format has one.
    ///
    /// # Errors
    /// A [`Misfit`] when a factor is missing or has a wrong shape.
    pub fn check<T: Shaped>(
        self,
        parts: &Parts<T>,
        weight: Dims<'_>,
    ) -> Result<Option<usize>, Misfit> {
        if let Some((part, tensor)) = parts.iter().next()
            && weight.count() == 0
        {
            return Err(Misfit::shape(
                part,
                tensor.shape(),
                "no factors of an empty weight",
            ));
        }
        if let Some(bias) = parts.get(Part::Bias) {
            full::check(Part::Bias, bias, weight)?;
        }
        dora::check(parts, weight)?;
        match self {
            Self::Lora => lora::check(parts, weight).map(Some),
            Self::Loha => loha::check(parts, weight).map(Some),
            Self::Ia3 => ia3::check(parts, weight).map(|()| None),
            Self::Lokr => lokr::check(parts, weight),
            Self::Full => full::check(Part::Diff, parts.need(Part::Diff)?, weight).map(|()| None),
            Self::Norm => full::check(Part::WNorm, parts.need(Part::WNorm)?, weight).map(|()| None),
            Self::Glora => glora::check(parts, weight).map(Some),
            Self::Oft => oft::check(parts, weight).map(|()| None),
        }
    }

    /// Changes a weight in place.
    ///
    /// # Errors
    /// A [`Misfit`] when a factor is missing or has a wrong shape.
    pub fn apply(
        self,
        parts: &Parts<Factor>,
        weight: &mut [f32],
        dims: Dims<'_>,
        strength: Strength,
    ) -> Result<(), Misfit> {
        self.check(parts, dims)?;
        dims.fits(weight);
        if strength.multiplier == 0.0 {
            return Ok(());
        }
        let is_plain = [Part::Bias, Part::DoraScale, Part::Magnitude, Part::Mid];
        let is_plain = is_plain.iter().all(|&part| parts.get(part).is_none());
        if self == Self::Lora && is_plain {
            return lora::add(parts, weight, dims, strength);
        }
        let mut delta = match self {
            Self::Lora => lora::delta(parts, dims, strength.rank)?,
            Self::Loha => loha::delta(parts, dims)?,
            Self::Ia3 => ia3::delta(parts, weight, dims)?,
            Self::Lokr => lokr::delta(parts, dims)?,
            Self::Full => parts.need(Part::Diff)?.values.clone(),
            Self::Norm => parts.need(Part::WNorm)?.values.clone(),
            Self::Glora => glora::delta(parts, weight, dims)?,
            Self::Oft => oft::delta(parts, weight, dims)?,
        };
        if let Some(bias) = parts.get(Part::Bias) {
            for (delta, bias) in delta.iter_mut().zip(&bias.values) {
                *delta += bias;
            }
        }
        if strength.scale != 1.0 {
            delta.iter_mut().for_each(|delta| *delta *= strength.scale);
        }
        dora::apply(parts, &mut delta, weight, dims)?;
        for (weight, delta) in weight.iter_mut().zip(&delta) {
            *weight += delta * strength.multiplier;
        }
        Ok(())
    }
}
