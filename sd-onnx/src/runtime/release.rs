//! The pinned releases, for each platform with a wheel.

use Product::{CudaBuild, OnnxRuntime, OpenVinoBuild, OpenVinoPlugin};

/// A library that can be searched for and downloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Product {
    /// Microsoft's build for the CPU. It accepts provider plugins.
    OnnxRuntime,
    /// Microsoft's build with CUDA's provider, which also runs on the CPU.
    CudaBuild,
    /// An older ONNX Runtime with OpenVINO's provider built in. It also supports processors that
    /// are not from Intel.
    OpenVinoBuild,
    /// OpenVINO's provider as a plugin for ONNX Runtime.
    OpenVinoPlugin,
}

/// A release of a product for one platform: a wheel, its checksum, and the files in it that are
/// needed.
#[derive(Debug)]
pub(super) struct Release {
    pub product: Product,
    /// The values of `std::env::consts::OS` and `ARCH`.
    platform: (&'static str, &'static str),
    /// The wheel's platform tag.
    #[cfg_attr(
        not(feature = "fetch"),
        expect(dead_code, reason = "only fetching needs it")
    )]
    pub tag: &'static str,
    #[cfg_attr(
        not(any(feature = "fetch", test)),
        expect(dead_code, reason = "only fetching needs it")
    )]
    pub wheel_sha256: &'static str,
    /// The needed files, in the format of `sha256sum`: first the library that is loaded, then the
    /// files that it needs in its folder.
    checksums: &'static str,
}

/// A file of a release.
#[derive(Debug)]
pub(super) struct Member {
    pub file: &'static str,
    pub sha256: &'static str,
}

/// Wheels for CPython 3.11 or for any Python. The libraries in them do not depend on Python.
///
/// Some of OpenVINO's files are left out: copies under other names, and `openvino_c` and
/// `tbbmalloc_proxy`, which nothing loads. OpenVINO loads most of the others by name when it needs
/// them. The Windows build with OpenVINO built in is not listed, because its wheel lacks OpenVINO
/// itself. TensorRT's provider is left out of the builds with CUDA.
static RELEASES: [Release; 9] = [
    Release {
        product: OnnxRuntime,
        platform: ("linux", "x86_64"),
        tag: "manylinux_2_28_x86_64",
        wheel_sha256: "5a34fc4dfeb5a7b4a74c95dcba1e773d722abda720b474edf1b0c419dc6d163d",
        checksums: "6c1585d1bbf45b0712ea4a21b705c5fcb4ba04ff2e30f1fbf81a49faf658638f  \
            libonnxruntime.so.1.32.0",
    },
    Release {
        product: OnnxRuntime,
        platform: ("linux", "aarch64"),
        tag: "manylinux_2_28_aarch64",
        wheel_sha256: "2303372a85299b6757b0e11e1cbf13e410ddf7e10c37f4b37e99d1c90e7daf7c",
        checksums: "49852228a93995158b2a813d4df487d47a1b76b0eaa894507ef49e91b6d7954a  \
            libonnxruntime.so.1.32.0",
    },
    Release {
        product: OnnxRuntime,
        platform: ("macos", "aarch64"),
        tag: "macosx_14_0_arm64",
        wheel_sha256: "366b9e53d07812cc5c92822cecf7563b76a8a0f32ba3bb8dd232a206ac3bcb6c",
        checksums: "fa585fabbea65b823b9a8f7e27d46aee3989d1be7e36b528203d3a1fd613aae7  \
            libonnxruntime.1.32.0.dylib",
    },
    Release {
        product: OnnxRuntime,
        platform: ("windows", "x86_64"),
        tag: "win_amd64",
        wheel_sha256: "d7e0c45cc5f456ad7805e6dd256a7662736cda9c2fd17becae194eb3c2f6df72",
        checksums: "e9feebaed867b76f741c14ae64e056a3da64a153a61994f1fb48eadc7f9b3ba8  \
            onnxruntime.dll",
    },
    Release {
        product: CudaBuild,
        platform: ("linux", "x86_64"),
        tag: "manylinux_2_28_x86_64",
        wheel_sha256: "e26c475fe361b2015f45b4b824bd13f0bb20204e59b62814e6f0acd5f3d491a6",
        checksums: include_str!("release/onnxruntime-gpu-1.31.1-linux-x86_64.sha256"),
    },
    Release {
        product: CudaBuild,
        platform: ("windows", "x86_64"),
        tag: "win_amd64",
        wheel_sha256: "fd98341ba71c093153f0dcfc53eb69d57f706866fb45e94e5b0cde5d97a50dbf",
        checksums: include_str!("release/onnxruntime-gpu-1.31.1-windows-x86_64.sha256"),
    },
    Release {
        product: OpenVinoPlugin,
        platform: ("linux", "x86_64"),
        tag: "manylinux_2_28_x86_64",
        wheel_sha256: "3832643158c8c187fcab6db661cde2a8c06a2b3559d95d0f2411ac0e51c5e924",
        checksums: include_str!("release/onnxruntime-ep-openvino-1.8.1-linux-x86_64.sha256"),
    },
    Release {
        product: OpenVinoPlugin,
        platform: ("windows", "x86_64"),
        tag: "win_amd64",
        wheel_sha256: "1acd878be173b02bb8b953460f2f59b121e5f6e47ebc6aad490c0590cf6718fb",
        checksums: include_str!("release/onnxruntime-ep-openvino-1.8.1-windows-x86_64.sha256"),
    },
    Release {
        product: OpenVinoBuild,
        platform: ("linux", "x86_64"),
        tag: "manylinux_2_28_x86_64",
        wheel_sha256: "3007c803634cc69c6d52af1dea7ce729d9bb62b9a11070fd2f959119199007a8",
        checksums: include_str!("release/onnxruntime-openvino-1.24.1-linux-x86_64.sha256"),
    },
];

impl Product {
    /// Returns the release for the platform that this crate is compiled for.
    pub fn here(self) -> Option<&'static Release> {
        let here = (std::env::consts::OS, std::env::consts::ARCH);
        RELEASES
            .iter()
            .find(|release| release.product == self && release.platform == here)
    }

    /// Returns the name for messages.
    pub fn title(self) -> &'static str {
        match self {
            OnnxRuntime => "ONNX Runtime",
            CudaBuild => "ONNX Runtime with CUDA",
            OpenVinoBuild => "ONNX Runtime with OpenVINO",
            OpenVinoPlugin => "OpenVINO's plugin",
        }
    }

    /// Returns the name of the Python package.
    pub fn package(self) -> &'static str {
        match self {
            OnnxRuntime => "onnxruntime",
            CudaBuild => "onnxruntime-gpu",
            OpenVinoBuild => "onnxruntime-openvino",
            OpenVinoPlugin => "onnxruntime-ep-openvino",
        }
    }

    /// Returns the pinned version of the package.
    pub fn version(self) -> &'static str {
        match self {
            OnnxRuntime => "1.32.0",
            // The newest release on 1 December 2026.
            CudaBuild => "1.31.1",
            OpenVinoBuild => "1.24.1",
            OpenVinoPlugin => "1.8.1",
        }
    }

    /// Returns the folder of the libraries in the package.
    pub fn source(self) -> &'static str {
        match self {
            OnnxRuntime | CudaBuild | OpenVinoBuild => "onnxruntime/capi",
            OpenVinoPlugin => "onnxruntime_ep_openvino",
        }
    }

    /// Returns the environment variable that contains the path of the library.
    pub fn variable(self) -> &'static str {
        match self {
            OnnxRuntime | CudaBuild | OpenVinoBuild => "ORT_DYLIB_PATH",
            OpenVinoPlugin => "ORT_OPENVINO_PLUGIN",
        }
    }
}

impl Release {
    /// Returns the name of the release's folder in the cache.
    pub fn folder(&self) -> String {
        let (os, arch) = self.platform;
        let (package, version) = (self.product.package(), self.product.version());
        format!("{package}-{version}-{os}-{arch}")
    }

    /// Returns the library that is loaded, and then the files that it needs in its folder.
    pub fn members(&self) -> impl Iterator<Item = Member> {
        self.checksums.lines().map(|line| {
            let (sha256, file) = line.split_once("  ").expect("a test reads every line");
            Member { file, sha256 }
        })
    }

    /// Returns the file name of the library that is loaded.
    pub fn library(&self) -> &'static str {
        self.members()
            .next()
            .expect("a test reads every first line")
            .file
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_release_has_its_own_folder_and_each_file_once() {
        let folders: HashSet<_> = RELEASES.iter().map(Release::folder).collect();
        assert_eq!(folders.len(), RELEASES.len());
        assert!(
            folders.contains("onnxruntime-1.32.0-linux-x86_64"),
            "{folders:?}"
        );
        for release in &RELEASES {
            let (mut files, mut hashes) = (HashSet::new(), HashSet::new());
            assert!(release.wheel_sha256.len() == 64, "{release:?}");
            for member in release.members() {
                // A file name with a path could leave the folder.
                assert!(!member.file.contains(['/', '\\']), "{member:?}");
                assert!(files.insert(member.file), "{member:?} is there twice");
                assert!(
                    hashes.insert(member.sha256),
                    "{member:?} has the bytes of another"
                );
                let digits = |text: &str| text.bytes().all(|b| b"0123456789abcdef".contains(&b));
                assert!(
                    member.sha256.len() == 64 && digits(member.sha256),
                    "{member:?}"
                );
            }
            let (os, _) = release.platform;
            let ending = match os {
                "windows" => ".dll",
                "macos" => ".dylib",
                _ => ".so",
            };
            assert!(release.library().contains(ending), "{release:?}");
            assert!(release.library().contains("onnxruntime"), "{release:?}");
        }
    }

    #[test]
    fn platforms_have_what_was_published_for_them() {
        let of = |product: Product| -> Vec<_> {
            let of_it = RELEASES.iter().filter(|release| release.product == product);
            of_it.map(|release| release.platform).collect()
        };
        let (linux, windows) = (("linux", "x86_64"), ("windows", "x86_64"));
        assert_eq!(
            of(OnnxRuntime),
            [linux, ("linux", "aarch64"), ("macos", "aarch64"), windows]
        );
        assert_eq!(of(OpenVinoBuild), [linux]);
        assert_eq!(of(OpenVinoPlugin), [linux, windows]);
        assert_eq!(of(CudaBuild), [linux, windows]);
    }
}
