use super::row::{CallFormula, SamplerRow};
use crate::{
    Ddim, DdimTarget, Ddpm, Deis, DeisNodes, Dpm2, Dpm2Ancestral, DpmAdaptive, DpmAlgorithm,
    DpmFast, DpmPlusPlus2M, DpmPlusPlus2MSde, DpmPlusPlus2SAncestral, DpmPlusPlus3MSde,
    DpmPlusPlusSde, DpmSolver, DpmSolverSinglestep, ErSde, Euler, EulerAncestral, EulerCfgPp,
    FinalSigma, GradientEstimation, Heun, Ipndm, IpndmWeights, Ladder, Lcm, Lms, Pndm,
    ResMultistep, Restart, SaSolver, Sampler, SchedulerConfig, SdeSolver, Tcd, UniPc,
};

macro_rules! arxiv {
    ($id:literal) => {
        concat!("https://arxiv.org/abs/", $id)
    };
}

const DDPM: &str = arxiv!("2006.11239");
const DDIM: &str = arxiv!("2010.02502");
const PNDM: &str = arxiv!("2202.09778");
const DEIS: &str = arxiv!("2204.13902");
const EDM: &str = arxiv!("2206.00364");
const DPM_SOLVER: &str = arxiv!("2206.00927");
const DPM_SOLVER_PP: &str = arxiv!("2211.01095");
const SA_SOLVER: &str = arxiv!("2309.05019");
const CFG_PP: &str = arxiv!("2406.08070");

/// Every sampler of this crate, with the options that people usually run it with.
#[rustfmt::skip]
pub static TABLE: &[SamplerRow] = &[
    SamplerRow::new("euler", "Euler", EDM, Ladder::karras(), |_| Box::new(Euler::default()))
        .diffusers("EulerDiscreteScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler")
        .webui().comfyui("euler"),
    SamplerRow::new("euler-a", "Euler a", DDPM, Ladder::karras(), |_| Box::new(EulerAncestral::default()))
        .diffusers("EulerAncestralDiscreteScheduler").webui().comfyui("euler_ancestral")
        .stochastic(),
    SamplerRow::new("heun", "Heun", EDM, Ladder::karras(), |config| {
        Box::new(Heun { clip: config.clip_range(), ..Heun::default() })
    })
        .diffusers("HeunDiscreteScheduler, FlowMatchHeunDiscreteScheduler").webui().comfyui("heun")
        .order(2).calls(CallFormula::TwoNLess1),
    SamplerRow::new("dpm2", "DPM2", DPM_SOLVER, Ladder::karras(), |_| Box::new(Dpm2::default()))
        .diffusers("KDPM2DiscreteScheduler").webui().comfyui("dpm_2")
        .order(2).calls(CallFormula::TwoNLess1),
    SamplerRow::new("dpm2-a", "DPM2 a", DPM_SOLVER, Ladder::karras(), |_| {
        Box::new(Dpm2Ancestral::default())
    })
        .diffusers("KDPM2AncestralDiscreteScheduler").webui().comfyui("dpm_2_ancestral")
        .order(2).calls(CallFormula::TwoNLess1).stochastic(),
    SamplerRow::new("lms", "LMS", EDM, Ladder::karras(), |_| Box::new(Lms::default()))
        .diffusers("LMSDiscreteScheduler").webui().comfyui("lms")
        .order(4).ends("own formula"),
    SamplerRow::new("ddim", "DDIM", DDIM, Ladder::leading(), |config| Box::new(Ddim::from_config(config)))
        .diffusers("DDIMScheduler").webui()
        .ends("alpha-bar 0").needs("integer timesteps"),
    SamplerRow::new("ddpm", "DDPM", DDPM, Ladder::leading(), |config| {
        Box::new(Ddpm { clip: config.clip, ..Ddpm::default() })
    })
        .diffusers("DDPMScheduler").comfyui("ddpm")
        .stochastic(),
    SamplerRow::new("pndm", "PNDM", PNDM, Ladder::leading(), |config| Box::new(Pndm::from_config(config)))
        .diffusers("PNDMScheduler")
        .order(2).calls(CallFormula::NPlus9).ends("alpha-bar 0").needs("integer timesteps"),
    SamplerRow::new("plms", "PLMS", PNDM, Ladder::leading(), |config| {
        Box::new(Pndm { skip_prk_steps: true, ..Pndm::from_config(config) })
    })
        .diffusers("PNDMScheduler, skip_prk_steps true").webui()
        .order(2).calls(CallFormula::NPlus1).ends("alpha-bar 0").needs("integer timesteps"),
    SamplerRow::new("ipndm", "iPNDM", DEIS, Ladder::karras(), |_| Box::new(Ipndm::default()))
        .comfyui("ipndm")
        .order(2),
    SamplerRow::new("ipndm-v", "iPNDM, variable step", DEIS, Ladder::karras(), |_| {
        Box::new(Ipndm { weights: IpndmWeights::VariablePublished, ..Ipndm::default() })
    })
        .comfyui("ipndm_v"),
    SamplerRow::new("deis", "DEIS", DEIS, Ladder::karras(), |config| {
        Box::new(Deis { clip: config.thresholding(), ..Deis::default() })
    })
        .diffusers("DEISMultistepScheduler")
        .order(2).ends("sigma_min"),
    SamplerRow::new("deis-tab", "DEIS (tab)", DEIS, Ladder::karras(), |config| {
        Box::new(Deis {
            order: 3,
            nodes: DeisNodes::Time,
            lower_order_final: false,
            end: FinalSigma::Zero,
            clip: config.thresholding(),
        })
    })
        .comfyui("deis")
        .order(3),
    SamplerRow::new("dpm-solver-1m", "DPM-Solver 1M", DPM_SOLVER, Ladder::karras(), |config| {
        multistep(config, DpmAlgorithm::Noise, 1)
    })
        .diffusers("DPMSolverMultistepScheduler, algorithm_type dpmsolver, solver_order 1")
        .ends("sigma_min"),
    SamplerRow::new("dpm-solver-2m", "DPM-Solver 2M", DPM_SOLVER, Ladder::karras(), |config| {
        multistep(config, DpmAlgorithm::Noise, 2)
    })
        .diffusers("DPMSolverMultistepScheduler, algorithm_type dpmsolver")
        .order(2).ends("sigma_min"),
    SamplerRow::new("dpm-solver-3m", "DPM-Solver 3M", DPM_SOLVER, Ladder::karras(), |config| {
        multistep(config, DpmAlgorithm::Noise, 3)
    })
        .diffusers("DPMSolverMultistepScheduler, algorithm_type dpmsolver, solver_order 3")
        .order(2).ends("sigma_min"),
    SamplerRow::new("dpm-solver-2s", "DPM-Solver 2S", DPM_SOLVER, Ladder::karras(), |config| {
        singlestep(config, DpmAlgorithm::Noise, 2)
    })
        .diffusers("DPMSolverSinglestepScheduler, algorithm_type dpmsolver")
        .order(2).ends("sigma_min"),
    SamplerRow::new("dpm-solver-3s", "DPM-Solver 3S", DPM_SOLVER, Ladder::karras(), |config| {
        singlestep(config, DpmAlgorithm::Noise, 3)
    })
        .diffusers("DPMSolverSinglestepScheduler, algorithm_type dpmsolver, solver_order 3")
        .order(3).ends("sigma_min"),
    SamplerRow::new("dpmpp-2m", "DPM++ 2M", DPM_SOLVER_PP, Ladder::karras(), |_| Box::new(DpmPlusPlus2M))
        .diffusers("DPMSolverMultistepScheduler, EDMDPMSolverMultistepScheduler").webui().comfyui("dpmpp_2m")
        .order(2),
    SamplerRow::new("dpmpp-3m", "DPM++ 3M", DPM_SOLVER_PP, Ladder::karras(), |config| {
        multistep(config, DpmAlgorithm::Denoised, 3)
    })
        .diffusers("DPMSolverMultistepScheduler, solver_order 3")
        .order(2),
    SamplerRow::new("dpmpp-2s", "DPM++ 2S", DPM_SOLVER_PP, Ladder::karras(), |config| {
        singlestep(config, DpmAlgorithm::Denoised, 2)
    })
        .diffusers("DPMSolverSinglestepScheduler")
        .order(2),
    SamplerRow::new("dpmpp-3s", "DPM++ 3S", DPM_SOLVER_PP, Ladder::karras(), |config| {
        singlestep(config, DpmAlgorithm::Denoised, 3)
    })
        .diffusers("DPMSolverSinglestepScheduler, solver_order 3")
        .order(3),
    SamplerRow::new("dpmpp-2s-a", "DPM++ 2S a", DPM_SOLVER_PP, Ladder::karras(), |_| {
        Box::new(DpmPlusPlus2SAncestral::default())
    })
        .webui().comfyui("dpmpp_2s_ancestral")
        .order(2).calls(CallFormula::TwoNLess1).stochastic(),
    SamplerRow::new("dpmpp-sde", "DPM++ SDE", DPM_SOLVER_PP, Ladder::karras(), |_| {
        Box::new(DpmPlusPlusSde::default())
    })
        .diffusers("DPMSolverSDEScheduler").webui().comfyui("dpmpp_sde")
        .calls(CallFormula::TwoNLess1).stochastic(),
    SamplerRow::new("dpmpp-2m-sde", "DPM++ 2M SDE", DPM_SOLVER_PP, Ladder::exponential(), |_| {
        Box::new(DpmPlusPlus2MSde::default())
    })
        .diffusers("DPMSolverMultistepScheduler, algorithm_type sde-dpmsolver++").webui().comfyui("dpmpp_2m_sde")
        .stochastic(),
    SamplerRow::new("dpmpp-2m-sde-heun", "DPM++ 2M SDE Heun", DPM_SOLVER_PP, Ladder::exponential(), |_| {
        Box::new(DpmPlusPlus2MSde { solver: SdeSolver::Heun, ..DpmPlusPlus2MSde::default() })
    })
        .diffusers("DPMSolverMultistepScheduler, algorithm_type sde-dpmsolver++, solver_type heun")
        .webui().comfyui("dpmpp_2m_sde_heun")
        .stochastic(),
    SamplerRow::new("dpmpp-3m-sde", "DPM++ 3M SDE", DPM_SOLVER_PP, Ladder::exponential(), |_| {
        Box::new(DpmPlusPlus3MSde::default())
    })
        .webui().comfyui("dpmpp_3m_sde")
        .stochastic(),
    SamplerRow::new("dpm-fast", "DPM fast", DPM_SOLVER, Ladder::karras(), |_| Box::new(DpmFast::default()))
        .webui().comfyui("dpm_fast")
        .order(3).ends("sigma_min"),
    SamplerRow::new("dpm-adaptive", "DPM adaptive", DPM_SOLVER, Ladder::karras(), |_| {
        Box::new(DpmAdaptive::default())
    })
        .webui().comfyui("dpm_adaptive")
        .order(3).calls(CallFormula::AtMost(3000)).ends("sigma_min"),
    SamplerRow::new("unipc", "UniPC", arxiv!("2302.04867"), Ladder::linspace(), |config| {
        Box::new(UniPc { clip: config.thresholding(), ..UniPc::default() })
    })
        .diffusers("UniPCMultistepScheduler").webui().comfyui("uni_pc")
        .order(3),
    SamplerRow::new("sa-solver", "SA-Solver", SA_SOLVER, Ladder::trailing(), |config| {
        Box::new(SaSolver { clip: config.thresholding(), ..SaSolver::default() })
    })
        .diffusers("SASolverScheduler").comfyui("sa_solver")
        .ends("sigma_min").stochastic(),
    SamplerRow::new("sa-solver-pece", "SA-Solver PECE", SA_SOLVER, Ladder::karras(), |config| {
        Box::new(SaSolver {
            predictor_order: 3,
            corrector_order: 4,
            evaluate_again: true,
            end: FinalSigma::Zero,
            clip: config.thresholding(),
            ..SaSolver::default()
        })
    })
        .comfyui("sa_solver_pece")
        .calls(CallFormula::TwoNLess1).stochastic(),
    SamplerRow::new("lcm", "LCM", arxiv!("2310.04378"), Ladder::lcm(), |config| {
        Box::new(Lcm { clip: config.clip, ..Lcm::default() })
    })
        .diffusers("LCMScheduler, FlowMatchLCMScheduler").webui().comfyui("lcm")
        .ends("own formula").stochastic(),
    SamplerRow::new("tcd", "TCD", arxiv!("2402.19159"), Ladder::lcm(), |_| Box::new(Tcd::default()))
        .diffusers("TCDScheduler")
        .ends("alpha-bar 0").stochastic(),
    SamplerRow::new("er-sde", "ER-SDE", arxiv!("2309.06169"), Ladder::karras(), |_| Box::new(ErSde::default()))
        .comfyui("er_sde")
        .stochastic(),
    SamplerRow::new("res-2m", "RES multistep", arxiv!("2308.02157"), Ladder::karras(), |_| Box::new(ResMultistep))
        .comfyui("res_multistep")
        .order(2),
    SamplerRow::new("gradient-estimation", "Gradient estimation", arxiv!("2306.04848"), Ladder::karras(), |_| {
        Box::new(GradientEstimation::default())
    })
        .comfyui("gradient_estimation"),
    SamplerRow::new("restart", "Restart", arxiv!("2306.14878"), Ladder::karras(), |_| Box::new(Restart::default()))
        .webui()
        .order(2).calls(CallFormula::TwoNLess1).stochastic(),
    SamplerRow::new("euler-cfg-pp", "Euler CFG++", CFG_PP, Ladder::karras(), |_| Box::new(EulerCfgPp::default()))
        .comfyui("euler_cfg_pp")
        .needs("unconditional output"),
    SamplerRow::new("euler-a-cfg-pp", "Euler ancestral CFG++", CFG_PP, Ladder::karras(), |_| {
        Box::new(EulerCfgPp { eta: 1.0, ..EulerCfgPp::default() })
    })
        .comfyui("euler_ancestral_cfg_pp")
        .needs("unconditional output").stochastic(),
    SamplerRow::new("ddim-cfg-pp", "DDIM CFG++", CFG_PP, Ladder::leading(), |config| {
        Box::new(Ddim { cfg_pp: true, target: DdimTarget::NextRung, ..Ddim::from_config(config) })
    })
        .webui()
        .ends("alpha-bar 0").needs("unconditional output"),
];

fn multistep(config: &SchedulerConfig, algorithm: DpmAlgorithm, order: usize) -> Box<dyn Sampler> {
    Box::new(DpmSolver {
        algorithm,
        order,
        end: end(algorithm),
        clip: config.thresholding(),
        ..DpmSolver::default()
    })
}

fn singlestep(config: &SchedulerConfig, algorithm: DpmAlgorithm, order: usize) -> Box<dyn Sampler> {
    Box::new(DpmSolverSinglestep {
        algorithm,
        order,
        end: end(algorithm),
        clip: config.thresholding(),
        ..DpmSolverSinglestep::default()
    })
}

/// Returns the only end that diffusers accepts for the algorithm.
fn end(algorithm: DpmAlgorithm) -> FinalSigma {
    match algorithm {
        DpmAlgorithm::Denoised | DpmAlgorithm::SdeDenoised => FinalSigma::Zero,
        DpmAlgorithm::Noise | DpmAlgorithm::SdeNoise => FinalSigma::SigmaMin,
    }
}
