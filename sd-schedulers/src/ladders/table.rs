use super::ramp;

/// The published ladders of Align Your Steps: <https://arxiv.org/abs/2404.14507> and its how-to
/// page. Each table has eleven levels for ten steps.
///
/// For another number of steps, the table is read at even distances, linearly in the logarithm of
/// sigma. The sigmas belong to the models that the ladders were found for. They stay the same on
/// any other diffusion model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlignYourSteps {
    /// The model whose table it is.
    pub model: AlignedModel,
    /// Whether the levels have the three digits of the how-to page, as in diffusers' `AysSchedules`
    /// and WebUI, instead of ComfyUI's twelve. Default of [`new`](Self::new): false.
    pub three_digits: bool,
    /// Whether the table's cleanest level is a rung, so that N rungs span the whole table, as in
    /// WebUI. Otherwise the run goes to 0 instead, so that the ten steps of the table are ten
    /// steps, as on the how-to page and in ComfyUI. Default of [`new`](Self::new): false.
    pub keep_last: bool,
}

/// A model that Align Your Steps has a table for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlignedModel {
    /// Stable Diffusion 1.5: sigma 14.61 to 0.029.
    Sd15,
    /// Stable Diffusion XL: sigma 14.61 to 0.029.
    Sdxl,
    /// Stable Video Diffusion: sigma 700 to 0.002.
    Svd,
}

impl AlignYourSteps {
    /// Returns the table of a model with all digits, for a run that goes to 0.
    pub const fn new(model: AlignedModel) -> Self {
        Self {
            model,
            three_digits: false,
            keep_last: false,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self.model {
            AlignedModel::Sd15 => "align-your-steps",
            AlignedModel::Sdxl => "align-your-steps-sdxl",
            AlignedModel::Svd => "align-your-steps-svd",
        }
    }

    pub(super) fn sigmas(self, steps: usize) -> Vec<f64> {
        let table = match (self.model, self.three_digits) {
            (AlignedModel::Sd15, false) => &SD15,
            (AlignedModel::Sd15, true) => &SD15_SHORT,
            (AlignedModel::Sdxl, false) => &SDXL,
            (AlignedModel::Sdxl, true) => &SDXL_SHORT,
            (AlignedModel::Svd, _) => &SVD,
        };
        let levels = if self.keep_last { steps } else { steps + 1 };
        read_log_linear(table, levels).take(steps).collect()
    }
}

/// Reads a falling table at `levels` even distances, both ends included, linearly in the logarithm.
pub(super) fn read_log_linear(table: &[f64], levels: usize) -> impl Iterator<Item = f64> + '_ {
    let last = table.len() - 1;
    (0..levels).map(move |i| {
        let place = ramp(i, levels) * last as f64;
        let low = (place as usize).min(last - 1);
        let weight = place - low as f64;
        (table[low].ln() * (1.0 - weight) + table[low + 1].ln() * weight).exp()
    })
}

#[rustfmt::skip]
static SD15: [f64; 11] = [
    14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092,
    0.9642583904, 0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582,
];
#[rustfmt::skip]
static SDXL: [f64; 11] = [
    14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141,
    0.5550693289, 0.3798540708, 0.2332364134, 0.1114188177, 0.0291671582,
];
#[rustfmt::skip]
static SD15_SHORT: [f64; 11] =
    [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029];
#[rustfmt::skip]
static SDXL_SHORT: [f64; 11] =
    [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029];
#[rustfmt::skip]
static SVD: [f64; 11] =
    [700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002];
