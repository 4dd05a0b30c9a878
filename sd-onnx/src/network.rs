//! A network of a model and the sessions that run it.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ndarray::ArrayD;
use sd_core::{NetworkReport, StopToken};

use crate::{
    Error,
    engine::Engine,
    graph::{Dialect, Model},
    session::{Input, Session},
};

/// Writes the graph of a network.
type Write = Box<dyn Fn(Dialect) -> Result<Model, Error> + Send + Sync>;

/// An input by its name.
pub(crate) type Named<'a> = (&'a str, Input<'a>);

/// A network. It is loaded as often as needed: for each size of its inputs where a session has one
/// size, and again after it was unloaded to save memory.
pub(crate) struct Network {
    name: &'static str,
    engine: Engine,
    write: Write,
    /// Whether a session has one size.
    fixed_sizes: bool,
    sessions: Arc<Sessions>,
}

/// The sessions of a network, the one that was used last first.
#[derive(Debug, Default)]
pub(crate) struct Sessions(Mutex<Vec<(Sizes, Arc<Session>)>>);

/// The sizes of all inputs of a session, one behind the other; empty if it takes any.
type Sizes = Vec<usize>;

impl Network {
    /// A network that is not loaded yet. Errors call it by `name`.
    pub fn new(
        name: &'static str,
        engine: &Engine,
        fixed_sizes: bool,
        write: impl Fn(Dialect) -> Result<Model, Error> + Send + Sync + 'static,
    ) -> Self {
        let sessions = Arc::default();
        engine.register(&sessions);
        Self {
            name,
            engine: engine.clone(),
            write: Box::new(write),
            fixed_sizes: fixed_sizes && engine.dialect().fixed_sizes,
            sessions,
        }
    }

    /// Loads the network for inputs of the sizes of `inputs`, whose values do not matter, so that
    /// the first call finds it ready. Does nothing with low memory.
    pub fn prepare(&self, inputs: &[Named<'_>]) -> Result<(), Error> {
        match self.engine.low_memory() {
            true => Ok(()),
            false => self.session(inputs).map(drop),
        }
    }

    /// Runs the network as [`Session::run`].
    pub fn run<T>(
        &self,
        inputs: &[Named<'_>],
        stop: &StopToken,
        read: impl FnOnce(&[i64], &[f32]) -> T,
    ) -> Result<T, Error> {
        self.session(inputs)?.run(inputs, stop, read)
    }

    /// Runs the network as [`Session::run_for`].
    pub fn run_for(
        &self,
        inputs: &[Named<'_>],
        outputs: &[&str],
    ) -> Result<Vec<ArrayD<f32>>, Error> {
        self.session(inputs)?.run_for(inputs, outputs)
    }

    /// Where the nodes of the loaded sessions run.
    pub fn report(&self) -> Vec<NetworkReport> {
        let sessions = self.sessions.lock();
        sessions
            .iter()
            .map(|(_, session)| session.report())
            .collect()
    }

    /// The session for inputs of these sizes. It is made if it is not there; other callers that
    /// need a session of this network wait for it.
    fn session(&self, inputs: &[Named<'_>]) -> Result<Arc<Session>, Error> {
        self.engine.make_room(&self.sessions);
        let mut sessions = self.sessions.lock();
        let place = match self.fixed_sizes {
            true => sessions.iter().position(|(sizes, _)| is_of(sizes, inputs)),
            false => (!sessions.is_empty()).then_some(0),
        };
        if let Some(place) = place {
            sessions[..=place].rotate_right(1);
            return Ok(sessions[0].1.clone());
        }
        // Before the new one, which needs their memory.
        sessions.truncate(self.engine.kept_sizes - 1);
        let mut model = self.model()?;
        let mut sizes = Sizes::new();
        if self.fixed_sizes {
            sizes.extend(inputs.iter().flat_map(|(_, input)| input.shape()));
            model = model.fixed(self.name, inputs)?;
        }
        let session = Arc::new(Session::new(self.name, &model, &self.engine)?);
        sessions.insert(0, (sizes, session.clone()));
        Ok(session)
    }
}

impl Network {
    /// Writes the graph. If the disk has no room for reordered filters, ONNX Runtime reorders them
    /// in memory.
    fn model(&self) -> Result<Model, Error> {
        let dialect = self.engine.dialect();
        (self.write)(dialect).or_else(|error| {
            if dialect.channel_block.is_none() {
                return Err(error);
            }
            let model = (self.write)(Dialect {
                channel_block: None,
                ..dialect
            })?;
            tracing::warn!(
                "the {} needs more memory and time to load: {error}",
                self.name
            );
            Ok(model)
        })
    }
}

/// Whether a session of these sizes takes the inputs.
fn is_of(sizes: &Sizes, inputs: &[Named<'_>]) -> bool {
    let asked = inputs.iter().flat_map(|(_, input)| input.shape());
    asked.eq(sizes)
}

impl Sessions {
    /// Drops all sessions. A call that runs at the moment keeps its own until it ends.
    pub fn unload(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Sizes, Arc<Session>)>> {
        // It holds whole sessions, whatever panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network")
            .field("name", &self.name)
            .field("engine", &self.engine)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::{
        engine::Settings,
        graph::{Dim, Graph},
        weights::Weights,
    };

    fn engine() -> Engine {
        Engine::new(Settings::default()).expect("it starts")
    }

    /// The graph that returns its input. Like a full disk, it refuses reordered filters.
    fn identity(dialect: Dialect) -> Result<Model, Error> {
        if dialect.channel_block.is_some() {
            let full = io::Error::from(io::ErrorKind::StorageFull);
            return Err(Error::io("weights")(full));
        }
        let weights = Weights::empty("weights".as_ref());
        let mut g = Graph::new("identity", &weights, dialect);
        let x = g.input("x", &[Dim::Fixed(2)]);
        g.output("y", x, &[Dim::Fixed(2)]);
        g.finish()
    }

    #[test]
    fn a_full_disk_costs_memory_only() {
        let network = Network::new("identity", &engine(), false, identity);
        let inputs = [("x", Input::F32(&[2], &[1.0, 2.0]))];
        let read = |_: &[i64], values: &[f32]| values.to_vec();
        let values = network.run(&inputs, &StopToken::new(), read);
        assert_eq!(values.expect("it runs"), [1.0, 2.0]);
    }

    #[test]
    fn an_error_of_the_plain_graph_is_returned() {
        let network = Network::new("broken", &engine(), false, |dialect| {
            identity(Dialect {
                channel_block: Some(16),
                ..dialect
            })
        });
        let error = network.prepare(&[]).expect_err("no form can be written");
        assert!(matches!(error, Error::Io { .. }), "{error}");
    }
}
