use std::any::Any;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::{Calls, Conventions, Ends, Needs, Run, Rungs, Sampler};

/// A sampler on rungs that are made in another way than it asks for itself: the same steps have several reference implementations, which
/// count and scale differently. [`DpmPlusPlus2M`](crate::DpmPlusPlus2M) has those of diffusers' class; with [`Conventions::default`] it is
/// k-diffusion's.
///
/// Whether the steps are right on such rungs is not checked: where [`Conventions::on_grid_only`], [`Conventions::training_timesteps`] or
/// [`Conventions::min_steps`] say something or [`Conventions::flow`] is the exploding path, that mostly has to stay.
#[derive(Clone, Debug)]
pub struct WithConventions {
    /// The sampler.
    pub sampler: Arc<dyn Sampler>,
    /// How its rungs are to be made.
    pub conventions: Conventions,
}

impl WithConventions {
    /// The sampler with these conventions: itself, if they are its own. Of one that is wrapped already, what is inside.
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

    fn ends(&self) -> Ends {
        self.sampler.ends()
    }

    fn needs(&self) -> Needs {
        self.sampler.needs()
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        self.sampler.sample(x, rungs, run)
    }
}
