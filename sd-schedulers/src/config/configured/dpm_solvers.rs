//! The samplers that the classes of the DPM-Solver family make from their keys.

use std::sync::Arc;

use super::super::{ConfigError, thresholding};
use super::File;
use super::samplers::Read;
use crate::{
    Sampler,
    ladders::{FinalSigma, Spacing},
    samplers::{
        Deis, DpmAlgorithm, DpmForm, DpmPlusPlus2M, DpmSolver, DpmSolverSinglestep, SaOutput,
        SaSolver, UniPc, UniPcVariant,
    },
};

/// The algorithms, and whether a run must end above 0.
///
/// EDM's class has the first three. The singlestep class has all but the last.
const ALGORITHMS: [(&str, (DpmAlgorithm, bool)); 5] = [
    ("dpmsolver++", (DpmAlgorithm::Denoised, false)),
    ("sde-dpmsolver++", (DpmAlgorithm::SdeDenoised, false)),
    ("deis", (DpmAlgorithm::Denoised, true)),
    ("dpmsolver", (DpmAlgorithm::Noise, true)),
    ("sde-dpmsolver", (DpmAlgorithm::SdeNoise, true)),
];
/// The values of `solver_type`. The last three belong to other classes and stand for the default
/// here.
const FORMS: [(&str, DpmForm); 5] = [
    ("midpoint", DpmForm::Midpoint),
    ("heun", DpmForm::Heun),
    ("logrho", DpmForm::Midpoint),
    ("bh1", DpmForm::Midpoint),
    ("bh2", DpmForm::Midpoint),
];

/// The classes.
impl File<'_> {
    pub(super) fn multistep(&self) -> Read {
        let (algorithm, end) = self.algorithm(&ALGORITHMS)?;
        let lu = self.keys.flag("use_lu_lambdas", false)?;
        let ladder = self.dpm_ladder(self.spacing(Spacing::Linspace)?, lu, true)?;
        self.same_end(end, &ladder)?;
        self.fixed_variance()?;
        Ok((self.dpm_solver(algorithm, end)?, ladder))
    }

    pub(super) fn edm_multistep(&self) -> Read {
        let (algorithm, end) = self.algorithm(&ALGORITHMS[..3])?;
        Ok((self.dpm_solver(algorithm, end)?, self.edm_ladder()?))
    }

    pub(super) fn singlestep(&self) -> Read {
        let (algorithm, end) = self.algorithm(&ALGORITHMS[..4])?;
        let ladder = self.dpm_ladder(Spacing::Linspace, false, true)?;
        self.same_end(end, &ladder)?;
        self.fixed_variance()?;
        if algorithm == DpmAlgorithm::Noise && self.keys.flag("thresholding", false)? {
            return Err(self.refuse("thresholding", "false with `dpmsolver`"));
        }
        let solver = DpmSolverSinglestep {
            algorithm,
            order: self.count("solver_order", 1..=3, 2)?,
            form: self.form()?,
            lower_order_final: self.keys.flag("lower_order_final", false)?,
            end,
            clip: thresholding(self.keys)?,
            ..DpmSolverSinglestep::default()
        };
        Ok((Arc::new(solver), ladder))
    }

    pub(super) fn deis(&self) -> Read {
        let same = |name| (name, ());
        let algorithms = ["deis", "dpmsolver", "dpmsolver++"].map(same);
        self.keys.one_of("algorithm_type", &algorithms)?;
        let solvers = ["logrho", "midpoint", "heun", "bh1", "bh2"].map(same);
        self.keys.one_of("solver_type", &solvers)?;
        let deis = Deis {
            order: self.count("solver_order", 1..=3, 2)?,
            lower_order_final: self.keys.flag("lower_order_final", true)?,
            clip: thresholding(self.keys)?,
            ..Deis::default()
        };
        let spacing = self.spacing(Spacing::Linspace)?;
        // This class has no `lambda_min_clipped`.
        let ladder = self.shaped_or_flow(spacing, false, true)?;
        Ok((Arc::new(deis), ladder))
    }

    pub(super) fn unipc(&self) -> Read {
        let variants = [
            ("bh1", UniPcVariant::Bh1),
            ("bh2", UniPcVariant::Bh2),
            ("midpoint", UniPcVariant::Bh2),
            ("heun", UniPcVariant::Bh2),
            ("logrho", UniPcVariant::Bh2),
        ];
        // `UniPc` stores the steps as bits.
        let steps = |value: &serde_json::Value| -> Option<u128> {
            let steps = value.as_array()?.iter();
            let steps = steps.map(|step| Some(step.as_u64()? as usize).filter(|&step| step < 127));
            Some(UniPc::uncorrected_at(steps.collect::<Option<Vec<_>>>()?))
        };
        let keys = self.keys;
        let uncorrected = keys.get("disable_corrector", "an array of integers below 127", steps)?;
        let unipc = UniPc {
            order: self.count("solver_order", 1..=3, 2)?,
            variant: keys.one_of("solver_type", &variants)?.unwrap_or_default(),
            predict_x0: keys.flag("predict_x0", true)?,
            lower_order_final: keys.flag("lower_order_final", true)?,
            uncorrected: uncorrected.unwrap_or(0),
            end: self.end()?,
            clip: thresholding(keys)?,
        };
        self.must_be_null("solver_p")?;
        if unipc.end == FinalSigma::Zero {
            let with = "with `final_sigmas_type` `zero`";
            if !unipc.predict_x0 {
                return Err(self.refuse("predict_x0", format!("true {with}")));
            }
            if unipc.variant == UniPcVariant::Bh1 {
                return Err(self.refuse("solver_type", format!("`bh2` {with}")));
            }
            if !unipc.lower_order_final && unipc.order > 1 {
                return Err(self.refuse("lower_order_final", format!("true {with}")));
            }
        }
        let ladder = self.unipc_ladder()?;
        if !unipc.predict_x0 && self.is_flow() {
            return Err(self.refuse("predict_x0", "true with `flow_prediction`"));
        }
        Ok((Arc::new(unipc), ladder))
    }

    pub(super) fn sa_solver(&self) -> Read {
        let outputs = [
            ("data_prediction", SaOutput::Denoised),
            ("noise_prediction", SaOutput::Noise),
        ];
        let output = self.keys.one_of("algorithm_type", &outputs)?;
        let sa_solver = SaSolver {
            predictor_order: self.count("predictor_order", 1..=4, 2)?,
            corrector_order: self.count("corrector_order", 1..=4, 2)?,
            output: output.unwrap_or_default(),
            lower_order_final: self.keys.flag("lower_order_final", true)?,
            clip: thresholding(self.keys)?,
            ..SaSolver::default()
        };
        self.must_be_null("tau_func")?;
        self.fixed_variance()?;
        if sa_solver.output == SaOutput::Noise && self.is_flow() {
            let expected = "`data_prediction` with `flow_prediction`";
            return Err(self.refuse("algorithm_type", expected));
        }
        let spacing = self.spacing(Spacing::Linspace)?;
        Ok((Arc::new(sa_solver), self.dpm_ladder(spacing, false, false)?))
    }
}

/// Code that several classes share.
impl File<'_> {
    fn form(&self) -> Result<DpmForm, ConfigError> {
        let form = self.keys.one_of("solver_type", &FORMS)?;
        Ok(form.unwrap_or_default())
    }

    fn algorithm(
        &self,
        known: &[(&str, (DpmAlgorithm, bool))],
    ) -> Result<(DpmAlgorithm, FinalSigma), ConfigError> {
        let found = self.keys.one_of("algorithm_type", known)?;
        let (algorithm, above_zero) = found.unwrap_or_default();
        let end = self.end()?;
        if above_zero && end == FinalSigma::Zero {
            let expected = "`sigma_min` with this `algorithm_type`";
            return Err(self.refuse("final_sigmas_type", expected));
        }
        let on_noise = matches!(algorithm, DpmAlgorithm::Noise | DpmAlgorithm::SdeNoise);
        if on_noise && self.is_flow() {
            let expected = "`dpmsolver++` or `sde-dpmsolver++` with `flow_prediction`";
            return Err(self.refuse("algorithm_type", expected));
        }
        Ok((algorithm, end))
    }

    /// Returns the simplest sampler that does what the keys of a multistep solver ask for.
    fn dpm_solver(
        &self,
        algorithm: DpmAlgorithm,
        end: FinalSigma,
    ) -> Result<Arc<dyn Sampler>, ConfigError> {
        let solver = DpmSolver {
            algorithm,
            order: self.count("solver_order", 1..=3, 2)?,
            form: self.form()?,
            lower_order_final: self.keys.flag("lower_order_final", true)?,
            euler_at_final: self.keys.flag("euler_at_final", false)?,
            end,
            clip: thresholding(self.keys)?,
            ..DpmSolver::default()
        };
        if algorithm == DpmAlgorithm::SdeNoise && solver.order == 3 {
            return Err(self.refuse("solver_order", "1 or 2 with `sde-dpmsolver`"));
        }
        // At order 2 with a last step to 0, these two options have no effect.
        let usual = DpmSolver {
            lower_order_final: solver.lower_order_final,
            euler_at_final: solver.euler_at_final,
            ..DpmSolver::default()
        };
        let sampler: Arc<dyn Sampler> = if solver == usual {
            Arc::new(DpmPlusPlus2M)
        } else {
            Arc::new(solver)
        };
        Ok(sampler)
    }

    /// Refuses a learned variance, which would be the second half of the model's output.
    fn fixed_variance(&self) -> Result<(), ConfigError> {
        match self.keys.text("variance_type")? {
            Some("learned" | "learned_range") => {
                Err(self.refuse("variance_type", "a variance that is not learned"))
            }
            _ => Ok(()),
        }
    }
}
