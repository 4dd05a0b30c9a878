//! The format of `torch.save` since torch 1.6: a ZIP file with one folder of any name, which
//! contains the pickle in `data.pkl` and each storage in an entry of the folder `data`.

use super::MOST_PICKLE;
use super::archive::Archive;
use super::contents::{self, Contents, Form};
use super::error::Problem;
use super::machine::Machine;
use super::source::Source;
use crate::outside::printable;

/// Reads the pickle and locates the storages.
pub(super) fn read(source: &Source) -> Result<Contents, Problem> {
    let archive = Archive::open(source)?;
    let folder = folder(&archive)?;
    let name = format!("{folder}data.pkl");
    let pickle = content(source, &archive, &name, MOST_PICKLE)?;
    let order = format!("{folder}byteorder");
    let big_endian = match archive.get(&order) {
        // torch before 2.1 does not write this entry.
        None => false,
        Some(_) => match &content(source, &archive, &order, 16)?[..] {
            b"little" => false,
            b"big" => true,
            _ => {
                let order = printable(order);
                let problem = "is neither `little` nor `big`";
                return Err(Problem::File(format!("entry `{order}` {problem}")));
            }
        },
    };
    let shown = printable(&name);
    let run = Machine::new(&pickle, 0).run();
    let run = run.map_err(|fault| fault.into_problem(&shown))?;
    if run.end != pickle.len() {
        let (byte, problem) = (
            run.end as u64,
            "the pickle ends before its entry does".to_owned(),
        );
        return Err(Problem::Pickle {
            pickle: shown,
            byte,
            problem,
        });
    }
    let find = |key: &str| archive.get(&format!("{folder}data/{key}"));
    contents::of(
        run,
        find,
        Form {
            big_endian,
            length: source.length,
            pickle: &shown,
        },
    )
}

/// Returns the name of the folder that contains the pickle, with a slash at its end.
fn folder(archive: &Archive) -> Result<String, Problem> {
    let inside = |name: &str| archive.names().any(|other| other.ends_with(name));
    if inside("/constants.pkl") {
        let problem = "a TorchScript program, which is not supported: expected a file of tensors";
        return Err(Problem::File(problem.to_owned()));
    }
    let folder = |name: &str| {
        let folder = name.strip_suffix("data.pkl")?;
        folder
            .find('/')
            .is_some_and(|at| at + 1 == folder.len())
            .then(|| folder.to_owned())
    };
    let mut folders = archive.names().filter_map(folder);
    match (folders.next(), folders.next()) {
        (Some(folder), None) => Ok(folder),
        (None, _) => {
            let problem = "a ZIP file without `data.pkl` in a folder: not from `torch.save`";
            Err(Problem::File(problem.to_owned()))
        }
        (Some(_), Some(_)) => {
            let problem = "a ZIP file with several `data.pkl`, expected one";
            Err(Problem::File(problem.to_owned()))
        }
    }
}

fn content(source: &Source, archive: &Archive, name: &str, most: u64) -> Result<Vec<u8>, Problem> {
    let stored = archive.get(name).expect("the entry was found by its name");
    if stored.length > most {
        let (name, length) = (printable(name), stored.length);
        let problem = format!("entry `{name}` has {length} bytes, expected at most {most}");
        return Err(Problem::File(problem));
    }
    stored.content(source)
}
