//! Measures the memory of this process, in MiB. It reads Linux's `/proc/self/status`.

use std::{
    fs, io, process,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// The time between two samples of [`AnonymousPeak`].
const PERIOD: Duration = Duration::from_millis(5);

/// Returns the largest resident set so far (`VmHWM`). It includes pages of mapped files.
///
/// # Errors
/// Returns an error if there is no `/proc/self/status` with this line.
pub fn peak_mib() -> io::Result<f64> {
    Ok(status("VmHWM:")? as f64 / 1024.0)
}

/// Returns the anonymous memory that is resident now (`RssAnon`).
///
/// # Errors
/// Returns an error if there is no `/proc/self/status` with this line.
pub fn anonymous_mib() -> io::Result<f64> {
    Ok(status("RssAnon:")? as f64 / 1024.0)
}

/// The largest anonymous memory of this process, which a thread samples every 5 ms.
///
/// Linux does not record this peak itself. Anonymous memory matters because it cannot be dropped
/// and read again, unlike the pages of mapped weights. The thread stops when this value is dropped.
#[derive(Debug)]
pub struct AnonymousPeak {
    kib: Arc<AtomicU64>,
    stopped: Arc<AtomicBool>,
}

impl AnonymousPeak {
    /// Starts sampling.
    ///
    /// # Errors
    /// Returns an error if [`anonymous_mib`] does.
    pub fn start() -> io::Result<Self> {
        let kib = Arc::new(AtomicU64::new(status("RssAnon:")?));
        let stopped = Arc::new(AtomicBool::new(false));
        let (peak, stop) = (kib.clone(), stopped.clone());
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                if let Ok(now) = status("RssAnon:") {
                    peak.fetch_max(now, Ordering::Relaxed);
                }
                thread::sleep(PERIOD);
            }
        });
        Ok(Self { kib, stopped })
    }

    /// Returns the largest sample so far.
    pub fn mib(&self) -> f64 {
        self.kib.load(Ordering::Relaxed) as f64 / 1024.0
    }
}

impl Drop for AnonymousPeak {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

/// Returns the size in the line of the process's status that begins with `name`, in KiB.
fn status(name: &str) -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let size = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = size.and_then(|size| size.trim().trim_end_matches(" kB").parse().ok());
    kib.ok_or_else(|| {
        let found = format!("/proc/self/status of {} has no {name}", process::id());
        io::Error::new(io::ErrorKind::Unsupported, found)
    })
}

#[cfg(all(test, target_os = "linux"))]
// In a test, a panic is the failure.
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_outlives_what_made_it() {
        const MIB: usize = 256;
        let peak = AnonymousPeak::start().unwrap();
        let before = anonymous_mib().unwrap();
        let filled = vec![1u8; MIB << 20];
        thread::sleep(20 * PERIOD);
        drop(std::hint::black_box(filled));
        let rise = peak.mib() - before;
        assert!(rise > 0.9 * MIB as f64, "it rose by {rise} MiB");
        assert!(anonymous_mib().unwrap() < before + 0.5 * MIB as f64);
        assert!(peak_mib().unwrap() >= peak.mib());
    }
}
