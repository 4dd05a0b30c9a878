//! The command-line options for pictures as input and for a second pass.

use std::path::{Path, PathBuf};

use clap::Args;
use sd_onnx::{
    Builder, Hires, HiresSize, Infotext, Mask, MaskRule, MaskedContent, Request, Resize, Sides,
    Start, Upscaler, files,
    image::{DynamicImage, RgbImage},
    infotext::MASK_NOTE,
};
use sd_text::outside::printable;
use serde::de::{DeserializeOwned, IntoDeserializer, value};

use crate::{
    Failure,
    options::{positive, sides},
    tell,
};

/// The options that choose a picture to start from.
#[derive(Debug, Clone, Args)]
pub struct StartOptions {
    /// Picture to start from (image to image): PNG, JPEG or WebP. It sets the size, unless --width
    /// and --height or the file of --like do
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// How much of --image is redrawn, 0 to 1 [default: 0.75; with --outpaint 0.8]
    #[arg(long, value_name = "SHARE", requires = "image", value_parser = share)]
    pub strength: Option<f32>,
    /// How --image is fitted to another size: stretch (its shape changes), crop (what hangs over is
    /// cut off), fill (the edges are continued) or latent (latents are scaled) [default: stretch]
    #[arg(long, value_name = "HOW", requires = "image", value_parser = named::<Resize>)]
    pub resize: Option<Resize>,
    /// Give the finished picture the colors of --image
    #[arg(long, requires = "image")]
    pub color_correction: bool,
    /// Mask of the size of --image: only its white part is redrawn (inpainting)
    #[arg(long, value_name = "FILE", requires = "image")]
    pub mask: Option<PathBuf>,
    /// Redraw the transparent part of --image
    #[arg(long, requires = "image", conflicts_with = "mask")]
    pub mask_alpha: bool,
    /// Draw beyond the borders of --image (outpainting): pixels to add on the left, top, right and
    /// bottom
    #[arg(
        long,
        value_name = "L,T,R,B",
        requires = "image",
        conflicts_with_all = ["mask", "mask_alpha"],
        value_parser = four_sides
    )]
    pub outpaint: Option<Sides>,
    /// Pixels of --image next to the new parts that are redrawn as well [default: 0]
    #[arg(long, value_name = "PIXELS", requires = "outpaint")]
    pub overlap: Option<u32>,
    /// Blur of the mask's edge in pixels, 0 to 256 [default: 0]
    #[arg(long, value_name = "PIXELS", requires = "image", value_parser = blur)]
    pub mask_blur: Option<f32>,
    /// How the mask acts: as in diffusers or in webui, or differential, where gray values are
    /// strengths [default: diffusers]
    #[arg(long, value_name = "RULE", requires = "image", value_parser = named::<MaskRule>)]
    pub mask_rule: Option<MaskRule>,
    /// What the masked area contains before the run: original, fill (blurred surroundings), noise
    /// or nothing [default: original; with --outpaint fill]
    #[arg(long, value_name = "WHAT", requires = "image", value_parser = named::<MaskedContent>)]
    pub masked_content: Option<MaskedContent>,
    /// Draw only the mask and this many pixels around it, at the size of --width and --height, and
    /// paste the result back; `none` draws the whole picture, also if the file of --like says a
    /// number
    #[arg(long, value_name = "PIXELS|none", requires = "image", value_parser = or_none(padding))]
    pub only_masked: Option<OrNone<u32>>,
}

/// The value of an option, or the word `none`, which undoes the value in the file of `--like`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrNone<T> {
    /// The word `none`.
    None,
    /// A value.
    Value(T),
}

/// The options of a second pass in a larger size.
#[derive(Debug, Clone, Args)]
pub struct HiresOptions {
    /// Redraw the picture in a larger size (WebUI's "Hires. fix"): a factor from 1 to 16, such as
    /// 2, or a size; `none` undoes the second pass in the file of --like
    #[arg(long, value_name = "SCALE|WxH|none", value_parser = or_none(hires))]
    pub hires: Option<OrNone<HiresSize>>,
    /// How much the second pass redraws, above 0 and up to 1 [default: 0.7]
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub hires_strength: Option<f32>,
    /// Steps of the second pass [default: as many as in the first pass]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub hires_steps: Option<usize>,
    /// How the picture is enlarged, by WebUI's name: Latent, "Latent (bicubic)", Lanczos …, or by
    /// the name of an --upscaler file without the extension [default: Latent]
    #[arg(long, value_name = "NAME")]
    pub hires_upscaler: Option<String>,
    /// Network that enlarges pictures, such as RealESRGAN_x4plus.pth: a .safetensors or .pth file;
    /// may be repeated
    #[arg(long, value_name = "FILE")]
    pub upscaler: Vec<PathBuf>,
    /// Prompt of the second pass [default: the prompt]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub hires_prompt: Option<String>,
}

/// Parses a value of an enum by the name that it has in JSON.
pub(crate) fn named<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let read = T::deserialize(IntoDeserializer::<value::Error>::into_deserializer(text));
    read.map_err(|error| error.to_string())
}

/// Parses a number from 0 to 1.
///
/// # Errors
/// Returns a text with what is expected.
pub fn share(text: &str) -> Result<f32, String> {
    let share = text.parse().ok();
    let share = share.filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "expected 0 to 1".to_owned())
}

fn four_sides(text: &str) -> Result<Sides, String> {
    let numbers: Option<Vec<u32>> = text
        .split(',')
        .map(|side| side.trim().parse().ok())
        .collect();
    match numbers.as_deref() {
        Some([0, 0, 0, 0]) => Err("expected at least one side with pixels to add".to_owned()),
        Some(&[left, top, right, bottom]) => Ok(Sides {
            left,
            top,
            right,
            bottom,
        }),
        _ => Err("expected four numbers of pixels: left, top, right and bottom".to_owned()),
    }
}

fn blur(text: &str) -> Result<f32, String> {
    let blur = text.parse().ok();
    let blur = blur.filter(|blur| (0.0..=256.0).contains(blur));
    blur.ok_or_else(|| "expected 0 to 256".to_owned())
}

/// Returns a parser of the word `none` and of the values that `parse` knows.
pub(crate) fn or_none<T>(
    parse: impl Fn(&str) -> Result<T, String> + Clone,
) -> impl Fn(&str) -> Result<OrNone<T>, String> + Clone {
    move |text| match text {
        "none" => Ok(OrNone::None),
        _ => parse(text).map(OrNone::Value),
    }
}

fn padding(text: &str) -> Result<u32, String> {
    let padding = text.parse();
    padding.map_err(|_| "expected a number of pixels, or none".to_owned())
}

fn hires(text: &str) -> Result<HiresSize, String> {
    if let Ok(size) = sides(text) {
        return Ok(HiresSize::Pixels(size));
    }
    let scale = text.parse().ok();
    let scale = scale.filter(|scale| (1.0..=16.0).contains(scale));
    let expected = "expected a factor from 1 to 16 or a size, such as 2 or 1024x768, or none";
    scale
        .map(HiresSize::Scale)
        .ok_or_else(|| expected.to_owned())
}

/// Returns the name of an upscaler's file without its extension.
pub fn upscaler_name(file: &Path) -> String {
    let name = file.file_stem().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Returns the upscaler that an option names, one of WebUI's or one of the `files`.
///
/// # Errors
/// [`Failure::Arguments`] if there is none.
pub fn named_upscaler(option: &str, name: &str, files: &[PathBuf]) -> Result<Upscaler, Failure> {
    if let Some(upscaler) = Upscaler::from_webui(name) {
        return Ok(upscaler);
    }
    let mut files = files.iter().map(|file| upscaler_name(file));
    if files.any(|file| file == name) {
        return Ok(Upscaler::Network(name.to_owned()));
    }
    let names: Vec<_> = Upscaler::webui_names().collect();
    Err(Failure::Arguments(format!(
        "{option} is {}, expected one of: {}; or the name of an --upscaler file without the \
         extension",
        printable(name),
        names.join(", ")
    )))
}

impl StartOptions {
    /// Reads the picture that the run starts from, and its mask. The options of an infotext count
    /// where no argument replaces them.
    ///
    /// # Errors
    /// - [`Failure::Work`] if a picture cannot be read.
    /// - [`Failure::Arguments`] if it has no transparency that could be a mask, if the mask has
    ///   another size, or if options of a mask are given without one.
    pub fn start(&self, like: Option<&Infotext>) -> Result<Option<Start>, Failure> {
        let Some(path) = &self.image else {
            return Ok(None);
        };
        let (picture, clear) = read(path)?;
        let mask = match &self.mask {
            _ if self.mask_alpha => match clear {
                Some(clear) => Some(clear),
                None => {
                    let path = printable(path.display());
                    let reason = format!("--mask-alpha: {path} has no transparent part");
                    return Err(Failure::Arguments(reason));
                }
            },
            None => {
                tell_clear(path, clear.as_ref());
                None
            }
            Some(mask_path) => {
                tell_clear(path, clear.as_ref());
                let (mask, clear) = read(mask_path)?;
                tell_clear(mask_path, clear.as_ref());
                check_mask(mask_path, mask.dimensions(), picture.dimensions())?;
                Some(Mask::new(DynamicImage::from(mask).to_luma8()))
            }
        };
        let mut start = self.of(picture, mask, like)?;
        if let Some(strength) = self.strength {
            start = start.strength(strength);
        }
        if let Some(resize) = self.resize {
            start = start.resize(resize);
        }
        start.color_correction |= self.color_correction;
        let Some(mask) = &mut start.mask else {
            return match self.mask_option() {
                Some(option) => Err(Failure::Arguments(format!(
                    "{option} needs a mask: --mask, --mask-alpha or --outpaint"
                ))),
                None => Ok(Some(start)),
            };
        };
        mask.blur = self.mask_blur.unwrap_or(mask.blur);
        mask.rule = self.mask_rule.unwrap_or(mask.rule);
        mask.content = self.masked_content.unwrap_or(mask.content);
        match self.only_masked {
            Some(OrNone::None) => mask.only_masked = None,
            Some(OrNone::Value(padding)) => mask.only_masked = Some(padding),
            None => {}
        }
        Ok(Some(start))
    }

    /// Returns the start from a picture, with the options of an infotext.
    fn of(
        &self,
        picture: RgbImage,
        mask: Option<Mask>,
        like: Option<&Infotext>,
    ) -> Result<Start, Failure> {
        let own = match self.outpaint {
            Some(sides) => {
                check_grown(&picture, sides)?;
                let start = Start::outpaint(&picture, sides, self.overlap.unwrap_or(0));
                start.map_err(Failure::arguments)?
            }
            None => {
                let mut start = Start::picture(picture);
                start.mask = mask;
                start
            }
        };
        // The picture is exchanged below, so its size does not matter.
        let blank = RgbImage::new(8, 8);
        let of_file = like.and_then(|like| Some((like, like.start(blank, own.mask.clone())?)));
        let Some((like, mut start)) = of_file else {
            return Ok(own);
        };
        let of_file = start.mask.take().filter(|_| has_mask(like));
        if self.outpaint.is_some() {
            start.resize = own.resize;
            // The strength of a picture that was not drawn anew may leave the blurred edges.
            let is_filled = |mask: &Mask| mask.content == MaskedContent::Fill;
            if !of_file.as_ref().is_some_and(is_filled) {
                start.strength = own.strength;
            }
        }
        start.from = own.from;
        start.mask = match (own.mask, of_file) {
            (Some(mask), Some(of_file)) => Some(self.with_options(mask, of_file)),
            (mask, _) => mask,
        };
        Ok(start)
    }

    /// Returns a mask with the options of a file's mask.
    fn with_options(&self, mut mask: Mask, mut of_file: Mask) -> Mask {
        if self.outpaint.is_some() {
            mask.rule = of_file.rule;
            mask.blur = of_file.blur;
            return mask;
        }
        if self.mask_alpha {
            // WebUI's "Inpaint not masked" inverts the mask that was drawn there.
            of_file.values = mask.values;
        }
        of_file
    }

    /// Returns an option that has no effect without a mask, if one is given.
    fn mask_option(&self) -> Option<&'static str> {
        let given = [
            (self.mask_blur.is_some(), "--mask-blur"),
            (self.mask_rule.is_some(), "--mask-rule"),
            (self.masked_content.is_some(), "--masked-content"),
            (self.only_masked.is_some(), "--only-masked"),
        ];
        let (_, option) = given.into_iter().find(|(given, _)| *given)?;
        Some(option)
    }

    /// Returns whether the size of the file of `--like` does not matter, because the picture grows
    /// beyond it.
    pub fn has_own_size(&self) -> bool {
        self.outpaint.is_some() && !matches!(self.only_masked, Some(OrNone::Value(_)))
    }

    /// Returns whether there is a mask.
    pub fn has_mask(&self) -> bool {
        self.mask.is_some() || self.mask_alpha || self.outpaint.is_some()
    }
}

impl HiresOptions {
    /// Adds the networks that enlarge pictures to a builder.
    pub fn with_upscalers(&self, builder: Builder) -> Builder {
        self.upscaler.iter().fold(builder, Builder::upscaler)
    }

    /// Adds the second pass to a request, or changes the second pass that it has.
    ///
    /// # Errors
    /// [`Failure::Arguments`] if options of a second pass are given without one, or if the run
    /// starts from a picture and would have a second pass.
    pub fn apply(&self, mut request: Request) -> Result<Request, Failure> {
        match (&self.hires, &mut request.hires) {
            (None, _) => {}
            (Some(OrNone::None), hires) => *hires = None,
            (Some(OrNone::Value(size)), Some(of_file)) => of_file.size = *size,
            (Some(OrNone::Value(size)), none) => {
                *none = Some(match *size {
                    HiresSize::Pixels([width, height]) => Hires::pixels(width, height),
                    HiresSize::Scale(factor) => Hires::scale(factor),
                    _ => unreachable!("a size is a factor or pixels"),
                });
            }
        }
        let given = [
            (self.hires_strength.is_some(), "--hires-strength"),
            (self.hires_steps.is_some(), "--hires-steps"),
            (self.hires_upscaler.is_some(), "--hires-upscaler"),
            (self.hires_prompt.is_some(), "--hires-prompt"),
        ];
        let Some(hires) = &mut request.hires else {
            return match given.into_iter().find(|(given, _)| *given) {
                Some((_, option)) => Err(Failure::Arguments(format!("{option} needs --hires"))),
                None => Ok(request),
            };
        };
        if request.start.is_some() {
            let reason = "--hires cannot be used with --image, because a second pass needs a run \
                          that starts from noise";
            return Err(Failure::Arguments(reason.to_owned()));
        }
        hires.strength = self.hires_strength.unwrap_or(hires.strength);
        hires.steps = self.hires_steps.or(hires.steps);
        if let Some(name) = &self.hires_upscaler {
            hires.upscaler = named_upscaler("--hires-upscaler", name, &self.upscaler)?;
        }
        if let Some(prompt) = &self.hires_prompt {
            hires.prompt = Some(prompt.into());
        }
        Ok(request)
    }
}

/// Checks that a picture with its new sides need not be scaled.
fn check_grown(picture: &RgbImage, sides: Sides) -> Result<(), Failure> {
    let sum = |sides: [u32; 3]| sides.into_iter().map(u64::from).sum::<u64>();
    let width = sum([picture.width(), sides.left, sides.right]);
    let height = sum([picture.height(), sides.top, sides.bottom]);
    if width % 8 == 0 && height % 8 == 0 {
        return Ok(());
    }
    Err(Failure::Arguments(format!(
        "--outpaint: the picture would have {width}×{height} pixels, expected multiples of 8"
    )))
}

/// Reads a picture, and the mask of its transparent part if it has one.
pub(crate) fn read(path: &Path) -> Result<(RgbImage, Option<Mask>), Failure> {
    let read = files::read_picture(path).map_err(Failure::at(path))?;
    let alpha = read
        .alpha
        .filter(|alpha| alpha.iter().any(|&opacity| opacity < 255));
    Ok((read.rgb, alpha.map(|alpha| Mask::from_alpha(&alpha))))
}

/// Checks that a mask has the size of its picture.
fn check_mask(path: &Path, mask: (u32, u32), picture: (u32, u32)) -> Result<(), Failure> {
    if mask == picture {
        return Ok(());
    }
    let [mask, picture] = [mask, picture].map(|(width, height)| format!("{width}×{height}"));
    Err(Failure::Arguments(format!(
        "--mask {} is {mask}, expected the size of --image, {picture}",
        printable(path.display())
    )))
}

/// Returns whether the picture with this infotext was redrawn within a mask.
fn has_mask(infotext: &Infotext) -> bool {
    let differences = infotext.request().differences;
    differences.iter().any(|difference| difference == MASK_NOTE)
}

/// Warns that transparency is ignored.
pub(crate) fn tell_clear(path: &Path, clear: Option<&Mask>) {
    if clear.is_some() {
        let path = printable(path.display());
        tell(format_args!("warning: {path}: the transparency is ignored"));
    }
}
