//! A network of a model, with the sessions that run it.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ndarray::ArrayD;
use sd_core::{NetworkReport, StopToken};
use sd_text::outside::chain;

use crate::{
    Error, RunError,
    engine::Engine,
    graph::{Dialect, Model},
    lora::{Active, Set, Sites},
    models::unet::Shortcuts,
    session::{Input, Session},
};

/// A function that writes the graph of a network, with shortcuts or without, and with LoRAs merged
/// into its weights or without.
type Write = Box<dyn Fn(Dialect, Shortcuts, Option<&Set>) -> Result<Model, Error> + Send + Sync>;

/// The name of an input, and its shape and values.
pub(crate) type Named<'a> = (&'a str, Input<'a>);

/// A network of a model, which loads its sessions when they are needed.
///
/// If a session accepts only one input size, each size has its own session. After the network was
/// unloaded to save memory, the next call loads it again.
pub(crate) struct Network {
    name: &'static str,
    engine: Engine,
    write: Write,
    /// Whether a session accepts only one size of each input.
    fixed_sizes: bool,
    /// The weights whose LoRAs can be inputs.
    sites: Arc<Sites>,
    sessions: Arc<Sessions>,
}

/// The loaded sessions of a network, the most recently used one first.
#[derive(Debug, Default)]
pub(crate) struct Sessions(Mutex<Vec<(Key, Arc<Session>)>>);

/// What a session can be used for.
#[derive(Debug)]
struct Key {
    /// The dimensions of all inputs, concatenated. Empty if the session accepts any size.
    sizes: Vec<usize>,
    /// Whether the factors of LoRAs are inputs.
    live: bool,
    /// The LoRAs that are merged into the weights.
    merged: Option<Arc<Set>>,
    shortcuts: Shortcuts,
}

/// A call of a network: its inputs, and the LoRAs that it runs with.
#[derive(Clone, Copy)]
pub(crate) struct NetworkCall<'a> {
    /// The values of the inputs. A graph with shortcuts may take only some of them.
    pub inputs: &'a [Named<'a>],
    pub loras: &'a Active,
    /// The step of the run, which the weights of LoRAs may depend on.
    pub step: usize,
    pub shortcuts: Shortcuts,
}

impl<'a> NetworkCall<'a> {
    /// Creates a call without LoRAs and shortcuts.
    pub fn new(inputs: &'a [Named<'a>]) -> Self {
        Self {
            inputs,
            loras: &Active::None,
            step: 0,
            shortcuts: Shortcuts::default(),
        }
    }
}

impl Network {
    /// Creates a network, which is not loaded yet.
    ///
    /// Errors call it `name`, and `write` writes its graph. `fixed_sizes` is whether the sizes of
    /// the inputs may be written into the graph. They are written if the engine's dialect needs it.
    pub fn new(
        name: &'static str,
        engine: &Engine,
        fixed_sizes: bool,
        write: impl Fn(Dialect) -> Result<Model, Error> + Send + Sync + 'static,
    ) -> Self {
        let sites = Arc::default();
        Self::changeable(name, engine, fixed_sizes, sites, move |dialect, _, _| {
            write(dialect)
        })
    }

    /// Like [`new`](Self::new), for a network with shortcuts that LoRAs can change: by inputs at
    /// the `sites`, or merged into the weights.
    pub fn changeable<W>(
        name: &'static str,
        engine: &Engine,
        fixed_sizes: bool,
        sites: Arc<Sites>,
        write: W,
    ) -> Self
    where
        W: Fn(Dialect, Shortcuts, Option<&Set>) -> Result<Model, Error> + Send + Sync + 'static,
    {
        let sessions = Arc::default();
        engine.register(&sessions);
        Self {
            name,
            engine: engine.clone(),
            write: Box::new(write),
            fixed_sizes: fixed_sizes && engine.dialect().fixed_sizes,
            sites,
            sessions,
        }
    }

    /// Loads the network for the sizes of `inputs`, so that the first call finds it ready. The
    /// values of `inputs` are ignored. Does nothing in low-memory mode.
    pub fn prepare(&self, inputs: &[Named<'_>]) -> Result<(), Error> {
        match self.engine.low_memory() {
            true => Ok(()),
            false => self.with_session(NetworkCall::new(inputs), |_, _| ()),
        }
    }

    /// Runs the network like [`Session::run`].
    pub fn run<T>(
        &self,
        call: NetworkCall<'_>,
        stop: &StopToken,
        read: impl FnOnce(&[i64], &[f32]) -> T,
    ) -> Result<T, RunError> {
        self.with_session(call, |session, inputs| session.run(inputs, stop, read))?
    }

    /// Runs the network like [`Session::run_for`].
    pub fn run_for(
        &self,
        call: NetworkCall<'_>,
        outputs: &[&str],
    ) -> Result<Vec<ArrayD<f32>>, RunError> {
        self.with_session(call, |session, inputs| session.run_for(inputs, outputs))?
    }

    /// Runs the network like [`Session::run_all`].
    pub fn run_all(
        &self,
        call: NetworkCall<'_>,
        stop: &StopToken,
        outputs: &[&str],
    ) -> Result<Vec<ArrayD<f32>>, RunError> {
        self.with_session(call, |session, inputs| {
            session.run_all(inputs, stop, outputs)
        })?
    }

    /// Unloads the network. A running call keeps its session until it ends.
    pub fn unload(&self) {
        self.sessions.unload();
    }

    /// Returns a report for each loaded session: which provider runs its nodes.
    pub fn report(&self) -> Vec<NetworkReport> {
        let sessions = self.sessions.lock();
        sessions
            .iter()
            .map(|(_, session)| session.report())
            .collect()
    }

    /// Calls `use_it` with the session for a call and all inputs of the call, which include the
    /// factors of LoRAs.
    fn with_session<T>(
        &self,
        call: NetworkCall<'_>,
        use_it: impl FnOnce(&Session, &[Named<'_>]) -> T,
    ) -> Result<T, Error> {
        let factors = self.sites.of_call(call.loras, call.step);
        let mut inputs = call.inputs.to_vec();
        if let Some(factors) = &factors {
            inputs.extend(self.sites.named(factors));
        }
        let merged = match call.loras {
            Active::Merged(set) => Some(set),
            Active::Live(_) | Active::None => None,
        };
        let key = Key {
            sizes: match self.fixed_sizes {
                true => {
                    let shapes = inputs.iter().flat_map(|(_, input)| input.shape());
                    shapes.copied().collect()
                }
                false => Vec::new(),
            },
            live: factors.is_some(),
            merged: merged.cloned(),
            shortcuts: call.shortcuts,
        };
        let session = self.session(key, &inputs)?;
        if call.shortcuts != Shortcuts::default() {
            inputs.retain(|(name, _)| session.takes(name));
        }
        Ok(use_it(&session, &inputs))
    }

    /// Returns the session for a key, and creates it if it does not exist. `inputs` have the sizes
    /// of the key. Meanwhile, other callers that need a session of this network wait.
    fn session(&self, key: Key, inputs: &[Named<'_>]) -> Result<Arc<Session>, Error> {
        self.engine.make_room(&self.sessions);
        let mut sessions = self.sessions.lock();
        if let Some(place) = sessions.iter().position(|(known, _)| *known == key) {
            sessions[..=place].rotate_right(1);
            return Ok(sessions[0].1.clone());
        }
        // Old sessions are dropped first, because the new one needs their memory.
        sessions.truncate(self.engine.kept_sizes - 1);
        let mut model = self.model(&key)?;
        if self.fixed_sizes {
            model = model.fixed(self.name, inputs)?;
        }
        let session = Arc::new(Session::new(self.name, &model, &self.engine)?);
        sessions.insert(0, (key, session.clone()));
        Ok(session)
    }

    /// Returns the weights whose LoRAs can be inputs.
    pub fn sites(&self) -> &Arc<Sites> {
        &self.sites
    }

    /// Writes the graph.
    ///
    /// If a graph with blocked convolutions cannot be written, for example because the disk has no
    /// room for the reordered filters, this writes one with plain convolutions. ONNX Runtime then
    /// reorders the filters in memory.
    fn model(&self, key: &Key) -> Result<Model, Error> {
        let dialect = Dialect {
            live: key.live,
            ..self.engine.dialect()
        };
        let merged = key.merged.as_deref();
        (self.write)(dialect, key.shortcuts, merged).or_else(|error| {
            if dialect.channel_block.is_none() {
                return Err(error);
            }
            let plain = Dialect {
                channel_block: None,
                ..dialect
            };
            let model = (self.write)(plain, key.shortcuts, merged)?;
            tracing::warn!(
                "the {} needs more memory and time to load, because its filters could not be \
                 reordered into a file: {}",
                self.name,
                chain(&error)
            );
            Ok(model)
        })
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        let same_set = match (&self.merged, &other.merged) {
            (Some(set), Some(other)) => set.is_same(other),
            (set, other) => set.is_none() && other.is_none(),
        };
        self.sizes == other.sizes
            && self.live == other.live
            && self.shortcuts == other.shortcuts
            && same_set
    }
}

impl Sessions {
    /// Drops all sessions. A running call keeps its session until it ends.
    pub fn unload(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Key, Arc<Session>)>> {
        // The list holds only complete sessions, even after a panic.
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
        Engine::new(Settings::default()).expect("ONNX Runtime starts")
    }

    /// Writes a graph that returns its input. Refuses reordered filters, as on a full disk.
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
        let values = network.run(NetworkCall::new(&inputs), &StopToken::new(), read);
        assert_eq!(values.expect("the plain graph runs"), [1.0, 2.0]);
    }

    #[test]
    fn an_error_of_the_plain_graph_is_returned() {
        let network = Network::new("broken", &engine(), false, |dialect| {
            identity(Dialect {
                channel_block: Some(16),
                ..dialect
            })
        });
        let error = network
            .prepare(&[])
            .expect_err("neither form can be written");
        assert!(matches!(error, Error::Io { .. }), "{error}");
    }
}
