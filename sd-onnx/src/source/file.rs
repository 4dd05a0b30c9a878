//! A model in one file.

use std::path::{Path, PathBuf};

use sd_text::ClipTokenizer;

use super::TowerParts;
use crate::{Error, config::Config, weights::Weights};

/// A checkpoint, recognised.
#[derive(Debug)]
pub(crate) struct ModelFile {
    path: PathBuf,
}

impl ModelFile {
    pub fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self {
            path: path.to_path_buf(),
        })
    }
    pub fn path(&self) -> &Path {
        &self.path
    }
    pub fn name(&self) -> String {
        let name = self.path.file_stem().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }
    pub fn class(&self) -> &str {
        todo!()
    }
    pub fn text_encoders(&self) -> [bool; 2] {
        todo!()
    }
    pub fn takes_score(&self) -> Option<bool> {
        todo!()
    }
    pub fn zeros_for_empty(&self) -> Option<bool> {
        todo!()
    }
    pub fn has(&self, _component: &str) -> bool {
        todo!()
    }
    pub fn require(&self, _component: &str) -> Result<(), Error> {
        todo!()
    }
    pub fn config(&self, _component: &str) -> Result<Config, Error> {
        todo!()
    }
    pub fn weights(&self, _component: &str) -> Result<Weights, Error> {
        todo!()
    }
    pub fn scheduler(&self) -> String {
        todo!()
    }
    pub fn tokenizer(&self, _tower: TowerParts) -> ClipTokenizer {
        todo!()
    }
}
