"""Runs the image processing of WebUI on the small models.

The source files of AUTOMATIC1111/stable-diffusion-webui and of k-diffusion are executed as they
are. Everything that they do not need here, as the user interface and the loading of models, is
replaced by mocks.
"""

import contextlib
import functools
import hashlib
import importlib.abc
import importlib.machinery
import io
import sys
import types
from unittest import mock

import numpy
import torch
from PIL import Image

import pictures
from make import HERE
from pictures import Model as Networks

WEBUI = "AUTOMATIC1111/stable-diffusion-webui v1.10.1 (82a973c04367123ae98bd9abdf80d9eda9b910e2)"
K_DIFFUSION = "crowsonkb/k-diffusion (ab527a9a6d347f364e3d185ba6d714e22d80cb3c)"

# The modules whose source is executed. All other modules of WebUI are mocks.
REAL = [
    "devices", "images", "infotext_utils", "masking", "options", "processing", "prompt_parser",
    "rng", "rng_philox", "script_callbacks", "sd_samplers", "sd_samplers_cfg_denoiser",
    "sd_samplers_common", "sd_samplers_extra", "sd_samplers_kdiffusion", "sd_samplers_lcm",
    "sd_samplers_timesteps", "sd_samplers_timesteps_impl", "sd_schedulers", "shared",
    "shared_options", "torch_utils", "upscaler",
]
MOCKED = [
    "blendmodes", "fastapi", "gradio", "launch", "ldm", "piexif", "pillow_avif", "pytz",
    "torchdiffeq",
]


def pinned():
    """Returns the SHA-256 of each source file that is executed."""
    lines = (HERE / "webui-sources.sha256").read_text().split("\n")
    return {name: digest for digest, name in (line.split() for line in lines if line)}


def source(folder, kind, name):
    text = (folder / name).read_bytes()
    digest = hashlib.sha256(text).hexdigest()
    assert digest == pinned()[f"{kind}/{name}"], f"{kind}/{name} has the SHA-256 {digest}"
    return text


def append_dims(x, dims):
    return x[(...,) + (None,) * (dims - x.ndim)]


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the modules of WebUI and k-diffusion from their folders, or mocks them."""

    def __init__(self, webui, k_diffusion):
        self.webui, self.k_diffusion = webui, k_diffusion

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modules", "k_diffusion", *MOCKED):
            return importlib.machinery.ModuleSpec(name, self, is_package=not self.is_real(name))
        return None

    @staticmethod
    def is_real(name):
        parent, _, leaf = name.partition(".")
        return (leaf in REAL if parent == "modules"
                else parent == "k_diffusion" and leaf in ("sampling", "external"))

    def create_module(self, spec):
        if spec.name in ("modules", "k_diffusion") or self.is_real(spec.name):
            return None
        module = mock.MagicMock(name=spec.name)
        module.__path__, module.__spec__ = [], spec
        return module

    def exec_module(self, module):
        name = module.__spec__.name
        parent, _, leaf = name.partition(".")
        if isinstance(module, mock.MagicMock):
            return
        if not leaf:
            if name == "k_diffusion":
                module.utils = types.ModuleType("k_diffusion.utils")
                module.utils.append_dims = append_dims
                sys.modules["k_diffusion.utils"] = module.utils
                import k_diffusion.sampling
                import k_diffusion.external
            return
        if parent == "modules":
            text = source(self.webui, "webui", f"modules/{leaf}.py")
        else:
            text = source(self.k_diffusion, "k-diffusion", f"k_diffusion/{leaf}.py")
        exec(compile(text, name, "exec"), module.__dict__)


class Webui:
    """WebUI's own modules: `processing`, `masking`, `images` and so on."""

    def __init__(self, webui, k_diffusion):
        sys.meta_path.insert(0, Finder(webui, k_diffusion))
        self.prepare()
        from modules import devices, images, masking, processing, rng
        from modules import sd_samplers_common, sd_samplers_timesteps, shared, upscaler

        self.devices, self.images, self.masking = devices, images, masking
        self.processing, self.rng, self.shared = processing, rng, shared
        self.common, self.timesteps = sd_samplers_common, sd_samplers_timesteps
        devices.device = shared.device = torch.device("cpu")
        devices.torch_gc = lambda: None
        self.precision(torch.float32)
        shared.sd_upscalers = [
            kind().scalers[0]
            for kind in (upscaler.UpscalerNone, upscaler.UpscalerLanczos, upscaler.UpscalerNearest)]

    def precision(self, dtype):
        devices = self.devices
        devices.dtype = devices.dtype_vae = devices.dtype_unet = dtype
        devices.dtype_inference = torch.float32  # so that nothing is cast in between

    def prepare(self):
        """Sets what the modules read while they are imported."""
        import launch
        launch.git_tag = lambda: "v1.10.1"
        import ldm.models.diffusion.ddpm as ddpm
        ddpm.LatentDepth2ImageDiffusion = type("LatentDepth2ImageDiffusion", (), {})
        from modules import extra_networks, lowvram, paths_internal, sd_vae, shared_cmd_options
        shared_cmd_options.cmd_opts = types.SimpleNamespace(
            styles_file=[], ui_settings_file="", hide_ui_dir_config=False, no_half=True,
            embeddings_dir="/nowhere", no_prompt_history=True, disable_nan_check=False,
            unix_filenames_sanitization=False, filenames_max_length=128, freeze_settings=False,
            freeze_specific_settings=None, use_cpu=[], enable_console_prompts=False,
            device_id=None, use_ipex=False, ui_config_file="", hide_ui=False)
        for name in ("models_path", "script_path", "data_path", "sd_configs_path", "extensions_dir",
                     "default_output_dir", "roboto_ttf_file"):
            setattr(paths_internal, name, "")
        lowvram.is_enabled = lambda model: False
        extra_networks.parse_prompts = lambda prompts: (prompts, {})
        sd_vae.get_loaded_vae_name = sd_vae.get_loaded_vae_hash = lambda: None

        from modules import shared
        shared.opts = types.SimpleNamespace()
        from modules import shared_options
        defaults = {k: v.default for k, v in shared_options.options_templates.items()}
        # The generator of the processor draws, and nothing is saved or shown.
        defaults |= dict(randn_source="CPU", samples_save=False, grid_save=False,
                         return_grid=False, live_previews_enable=False)
        self.defaults = {k: v for k, v in defaults.items() if not isinstance(v, mock.MagicMock)}
        shared.opts.__dict__.update(self.defaults)
        shared.state = types.SimpleNamespace(
            skipped=False, interrupted=False, stopping_generation=False, job_count=-1,
            processing_has_refined_job_count=False, nextjob=lambda: None, sampling_step=0,
            job_timestamp="")
        shared.total_tqdm = mock.MagicMock()
        shared.prompt_styles = types.SimpleNamespace(
            apply_styles_to_prompt=lambda text, styles: text,
            apply_negative_styles_to_prompt=lambda text, styles: text)

    @contextlib.contextmanager
    def options(self, **changes):
        opts = self.shared.opts
        assert changes.keys() <= vars(opts).keys(), changes
        before = {k: getattr(opts, k) for k in changes}
        vars(opts).update(changes)
        try:
            yield
        finally:
            vars(opts).update(before)


class Model:
    """A small model behind the interface of `WebuiSdModel`."""

    parameterization, cond_stage_key, is_sdxl_inpaint = "eps", "txt", False
    is_sd1 = is_sd2 = is_sd3 = is_ssd = False
    latent_channels = 4

    def __init__(self, name):
        self.name, self.networks = name, Networks(name)
        self.is_sdxl, self.parts = self.networks.is_xl, self.networks.parts
        self.unet, self.vae = self.parts["unet"], self.parts["vae"]
        self.factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.scale = self.vae.config.scaling_factor
        config = self.networks.scheduler.config
        assert config["beta_schedule"] == "scaled_linear" and not config.get("trained_betas")
        # In double precision and then rounded, as the schedules of LDM and SGM are made.
        betas = numpy.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, 1000) ** 2
        self.exact = torch.from_numpy(numpy.cumprod(1 - betas))
        self.dtype = torch.float32
        self.model = types.SimpleNamespace(conditioning_key="crossattn")
        self.first_stage_model = types.SimpleNamespace(dtype=torch.float32, to=lambda dtype: None)
        self.sd_checkpoint_info = types.SimpleNamespace(name_for_extra=name.split("/")[-1])
        self.sd_model_hash, self.device = None, torch.device("cpu")
        self.pipeline = self.networks.pipeline(dict(
            pipeline="StableDiffusionXLImg2ImgPipeline" if self.is_sdxl
            else "StableDiffusionImg2ImgPipeline",
            scheduler="EulerDiscreteScheduler", scheduler_changes={}))

    @property
    def alphas_cumprod(self):
        return self.exact.to(self.dtype)

    @contextlib.contextmanager
    def ema_scope(self):
        yield

    @contextlib.contextmanager
    def doubled(self, webui):
        """Runs everything in double precision, but with the random numbers of single precision."""
        draw = webui.rng.ImageRNG.next
        with self.networks.doubled():
            self.dtype = self.first_stage_model.dtype = torch.float64
            webui.precision(torch.float64)
            webui.rng.ImageRNG.next = lambda rng: draw(rng).double()
            try:
                yield
            finally:
                self.dtype = self.first_stage_model.dtype = torch.float32
                webui.precision(torch.float32)
                webui.rng.ImageRNG.next = draw

    def embed(self, text):
        """Returns the tokens and the pooled state of a prompt, as diffusers encodes it."""
        options = dict(prompt=text, device="cpu", num_images_per_prompt=1,
                       do_classifier_free_guidance=False)
        found = self.pipeline.encode_prompt(**options)
        return (found[0], found[2]) if self.is_sdxl else (found[0], None)

    def get_learned_conditioning(self, texts):
        found = [self.embed(text) for text in texts]
        tokens = torch.cat([tokens for tokens, _ in found])
        if not self.is_sdxl:
            return tokens
        opts = sys.modules["modules.shared"].opts
        pooled = torch.cat([pooled for _, pooled in found])
        if getattr(texts, "is_negative_prompt", False) and all(text == "" for text in texts):
            tokens, pooled = torch.zeros_like(tokens), torch.zeros_like(pooled)
        size = [texts.height, texts.width]
        ids = torch.tensor([*size, opts.sdxl_crop_top, opts.sdxl_crop_left, *size])
        ids = ids.to(pooled.dtype).repeat(len(texts), 1)
        return {"crossattn": tokens, "vector": torch.cat([pooled, ids], dim=1)}

    def apply_model(self, x, t, cond):
        if self.is_sdxl:
            vector = cond["vector"].to(self.dtype)
            added = dict(text_embeds=vector[:, :-6], time_ids=vector[:, -6:])
            tokens = cond["crossattn"]
        else:
            added, (tokens,) = None, cond["c_crossattn"]
        return self.unet(x.to(self.dtype), t, encoder_hidden_states=tokens.to(self.dtype),
                         added_cond_kwargs=added).sample

    def encode_first_stage(self, pixels):
        return self.vae.encode(pixels).latent_dist

    def get_first_stage_encoding(self, posterior):
        # WebUI draws a sample from the global generator, which no seed of a run sets.
        return posterior.mode() * self.scale

    def decode_first_stage(self, latents):
        return self.vae.decode(latents / self.scale).sample


class Pass:
    """What a sampler got and did.

    `picture`: the latents that the pass starts from, or None. `noise`: the first noise. `start`:
    x at the first step. `levels`: the sigmas or timesteps of the steps. `calls`: those of the calls
    of the network. `draws`: the noises of the steps. `tree`: the seeds and sigmas of the Brownian
    tree. `inputs`: x at each call, before the blend. `latents`: what the sampler returned.
    """

    def __init__(self, sampler):
        self.name, self.sampler = sampler.config.name, sampler
        self.picture = self.noise = self.start = self.levels = self.latents = self.tree = None
        self.calls, self.draws, self.inputs, self.eta = [], [], [], None


def inputs_of(case):
    """Returns the picture and the mask of a case as WebUI receives them."""
    if not case["picture"]:
        return {}
    found = dict(init_images=[Image.fromarray(pictures.picture(case["picture"]))])
    if case["mask"]:
        found["mask"] = Image.fromarray(mask_of(case))
    return found


def mask_of(case):
    width, height = pictures.PICTURES[case["picture"]]
    if case["mask"] in ("nothing", "everything"):
        return numpy.full((height, width), 255 * (case["mask"] == "everything"), numpy.uint8)
    return pictures.mask(case["mask"], case["picture"])


class Run:
    """A run of a case through WebUI's `process_images_inner`.

    `fields` are WebUI's fields of the processing, `options` are changed settings. `spoil(webui)`
    is a context manager that makes a mistake. With `replay`, the noise of a Brownian tree is that
    of another run."""

    def __init__(self, webui, model, case, spoil=None, replay=None):
        self.webui, self.model, self.case, self.replay = webui, model, case, replay
        self.passes, self.encoded, self.decoded, self.noises = [], [], [], []
        self.final, self.before, self.resized = None, [], []
        processing = webui.processing
        webui.shared.sd_model, processing.opt_f = model, model.factor
        webui.shared.state.job_count = -1
        webui.shared.state.processing_has_refined_job_count = False
        kind = getattr(processing, f"StableDiffusionProcessing{case['kind']}")
        inputs = inputs_of(case)
        with contextlib.ExitStack() as stack:
            stack.enter_context(webui.options(**case["options"]))
            # Caches belong to a model.
            kind.cached_c, kind.cached_uc = [None, None], [None, None]
            processing.StableDiffusionProcessing.cached_c = [None, None]
            processing.StableDiffusionProcessing.cached_uc = [None, None]
            processing.StableDiffusionProcessingTxt2Img.cached_hr_c = [None, None]
            processing.StableDiffusionProcessingTxt2Img.cached_hr_uc = [None, None]
            if spoil:
                stack.enter_context(spoil(webui))
            for patch in self.watches():
                stack.enter_context(patch)
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            self.p = kind(
                do_not_save_grid=True, do_not_save_samples=True, **case["fields"], **inputs)
            self.result = processing.process_images_inner(self.p)
        self.images = [numpy.array(image) for image in self.result.images]
        self.latents = self.final

    def watches(self):
        webui = self.webui
        processing, rng = webui.processing, webui.rng.ImageRNG
        create, draw = processing.sd_samplers.create_sampler, rng.next
        encode, decode = processing.images_tensor_to_samples, processing.decode_latent_batch
        brownian = webui.common.Sampler.create_noise_sampler
        overlay, resize = processing.apply_overlay, webui.images.resize_image

        def created(name, model):
            sampler = create(name, model)
            self.watch(sampler)
            return sampler

        def next_noise(generator):
            found = draw(generator)
            last = self.passes[-1] if self.passes else None
            if last and last.start is not None and last.latents is None:
                last.draws.append(found.clone())
            else:
                self.noises.append(found.clone())
            return found

        def images_tensor_to_samples(image, *rest):
            found = encode(image, *rest)
            self.encoded.append((image.clone(), found.clone()))
            return found

        def decode_latent_batch(model, batch, **rest):
            self.decoded.append(batch.clone())
            self.final = batch.clone()
            return decode(model, batch, **rest)

        def create_noise_sampler(sampler, x, sigmas, p):
            seeds = p.all_seeds[p.iteration * p.batch_size : (p.iteration + 1) * p.batch_size]
            made = brownian(sampler, x, sigmas, p)
            found, index, asked = self.passes[-1], len(self.passes) - 1, []

            def noise(sigma, sigma_next):
                values = made(sigma, sigma_next)
                if self.replay:  # the tree feels the rounding of the sigmas
                    values = self.replay.passes[index].draws[len(found.draws)].to(x.dtype)
                asked.append((float(sigma), float(sigma_next)))
                found.draws.append(values.clone())
                return values

            interval = made.tree.trees[0]._interval
            ends = [float(interval._start), float(interval._end)]
            found.tree = dict(seeds=list(map(int, seeds)), ends=ends, asked=asked)
            return noise

        def apply_overlay(image, *rest):
            self.before.append(numpy.array(image))
            return overlay(image, *rest)

        def resize_image(mode, image, width, height, upscaler_name=None):
            found = resize(mode, image, width, height, upscaler_name)
            self.resized.append((numpy.array(image), numpy.array(found)))
            return found

        return [
            mock.patch.object(processing, "apply_overlay", apply_overlay),
            mock.patch.object(webui.images, "resize_image", resize_image),
            mock.patch.object(processing.sd_samplers, "create_sampler", created),
            mock.patch.object(rng, "next", next_noise),
            mock.patch.object(processing, "images_tensor_to_samples", images_tensor_to_samples),
            mock.patch.object(processing, "decode_latent_batch", decode_latent_batch),
            mock.patch.object(webui.common.Sampler, "create_noise_sampler", create_noise_sampler),
        ]

    def watch(self, sampler):
        found = Pass(sampler)
        self.passes.append(found)
        sample, sample_img2img, func = sampler.sample, sampler.sample_img2img, sampler.func
        denoiser = sampler.model_wrap_cfg
        forward = denoiser.forward

        @functools.wraps(func)
        def started(model, x, *rest, **options):
            found.start = x.clone()
            found.levels = options.get("sigmas", options.get("timesteps")).tolist()
            found.eta = options.get("eta")
            return func(model, x, *rest, **options)

        def called(x, sigma, *rest, **options):
            found.calls.append(float(sigma[0]))
            found.inputs.append(x.clone())
            return forward(x, sigma, *rest, **options)

        def sampled(p, x, *rest, **options):
            found.noise = x.clone()
            found.latents = sample(p, x, *rest, **options).clone()
            return found.latents.clone()

        def sampled_img2img(p, x, noise, *rest, **options):
            found.picture, found.noise = x.clone(), noise.clone()
            found.latents = sample_img2img(p, x, noise, *rest, **options).clone()
            return found.latents.clone()

        sampler.func, denoiser.forward = started, called
        sampler.sample, sampler.sample_img2img = sampled, sampled_img2img
