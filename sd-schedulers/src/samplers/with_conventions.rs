use std::any::Any;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::{
    Run, Rungs, Sampler,
    ladders::Conventions,
    samplers::{Calls, EndPoint, Needs},
};

/// A sampler whose rungs are made with other conventions than its own.
///
/// The same steps have several reference implementations, which count and scale differently. For
/// example, [`DpmPlusPlus2M`](crate::samplers::DpmPlusPlus2M) has the conventions of diffusers'
/// class, and with [`Conventions::default`] it is k-diffusion's.
///
/// Whether the steps are correct on such rungs is not checked. Usually,
/// [`Conventions::on_grid_only`], [`Conventions::training_timesteps`] and
/// [`Conventions::min_steps`] must stay if they are set, and [`Conventions::flow`] must stay if it
/// is [`NoisePath::Exploding`](crate::ladders::NoisePath::Exploding).
///
/// ```
/// use std::sync::Arc;
/// use sd_schedulers::{Sampler, ladders::Conventions, samplers::{DpmPlusPlus2M, WithConventions}};
///
/// let sampler = WithConventions::wrap(Arc::new(DpmPlusPlus2M), Conventions::default());
/// assert_eq!(sampler.conventions(), Conventions::default());
/// ```
#[derive(Clone, Debug)]
pub struct WithConventions {
    /// The sampler.
    pub sampler: Arc<dyn Sampler>,
    /// The conventions by which its rungs are made.
    pub conventions: Conventions,
}

impl PartialEq for WithConventions {
    fn eq(&self, other: &Self) -> bool {
        *self.sampler == *other.sampler && self.conventions == other.conventions
    }
}

impl WithConventions {
    /// Returns the sampler with these conventions.
    ///
    /// If the sampler has these conventions already, it is returned as it is. If it is a
    /// `WithConventions`, the sampler inside is wrapped instead.
    pub fn wrap(sampler: Arc<dyn Sampler>, conventions: Conventions) -> Arc<dyn Sampler> {
        let wrapped = (&*sampler as &dyn Any).downcast_ref::<Self>();
        let sampler = match wrapped {
            Some(wrapped) => Arc::clone(&wrapped.sampler),
            None => sampler,
        };
        if sampler.conventions() == conventions {
            sampler
        } else {
            Arc::new(Self {
                sampler,
                conventions,
            })
        }
    }
}

impl Sampler for WithConventions {
    fn conventions(&self) -> Conventions {
        self.conventions
    }

    fn calls(&self, rungs: &Rungs) -> Calls {
        self.sampler.calls(rungs)
    }

    fn calls_per_step(&self) -> usize {
        self.sampler.calls_per_step()
    }

    fn ends(&self) -> EndPoint {
        self.sampler.ends()
    }

    fn needs(&self) -> Needs {
        self.sampler.needs()
    }

    fn adds_noise(&self) -> bool {
        self.sampler.adds_noise()
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        self.sampler.sample(x, rungs, run)
    }
}
