//! Reads the files of a tokenizer folder and combines them in the order of transformers 5.23
//! (`PreTrainedTokenizerBase._from_pretrained`, `TokenizersBackend.__init__`).

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::TokenizerError;
use crate::outside;

pub(super) const BOS: &str = "<|startoftext|>";
pub(super) const EOS: &str = "<|endoftext|>";
/// The named special tokens with the defaults of `CLIPTokenizer`, in the order in which they are
/// added.
const NAMED: [(&str, Option<&str>); 7] = [
    ("bos_token", Some(BOS)),
    ("eos_token", Some(EOS)),
    ("unk_token", Some(EOS)),
    ("sep_token", None),
    ("pad_token", Some(EOS)),
    ("cls_token", None),
    ("mask_token", None),
];
/// The length if the files set none. Every CLIP text model has this length.
pub(super) const CLIP_LENGTH: usize = 77;
/// The greatest length. It is far above any text model, and low enough that a broken file cannot
/// request gigabytes.
const MOST_LENGTH: u64 = 65_536;
/// Lengths above this mean "no limit" in transformers (`LARGE_INTEGER`).
const NO_LIMIT: f64 = 1e20;
/// The most bytes of `tokenizer.json`, `vocab.json` and `merges.txt`. CLIP's files have 2.2, 0.9
/// and 0.5 MB.
const MOST_VOCABULARY: u64 = 16 << 20;
/// The most bytes of each of the other files. Published models have a few kB. 4 MiB is enough for
/// about 30,000 tokens with all their settings.
const MOST_SETTINGS: u64 = 4 << 20;

pub(super) use tokenizers::models::bpe::Vocab;
pub(super) type Merges = Vec<(String, String)>;

pub(super) struct Files {
    pub vocab_file: PathBuf,
    pub vocab: Vocab,
    pub merges: Merges,
    pub unk: String,
    pub bos: String,
    pub eos: String,
    pub pad: String,
    /// The tokens that the files list with an id, in the order of the ids.
    pub declared: Vec<AddedToken>,
    /// The special tokens that are not in `declared`.
    pub special: Vec<AddedToken>,
    pub split_special: bool,
    /// At least 2.
    pub max_length: usize,
}

impl Files {
    pub fn read(dir: &Path) -> Result<Self, TokenizerError> {
        let whole: Option<TokenizerJson> = optional(&dir.join("tokenizer.json"), MOST_VOCABULARY)?;
        let mut settings = Settings {
            dir,
            values: BTreeMap::new(),
        };
        settings.overlay("tokenizer_config.json")?;
        let decoder: Option<BTreeMap<u64, Entry>> = settings.field("added_tokens_decoder")?;
        if decoder.is_none() {
            settings.overlay("special_tokens_map.json")?;
        }

        let named = settings.named()?;
        let extra = settings.extra()?;
        let by_id = match decoder {
            Some(by_id) => by_id,
            None => added_tokens(&settings, whole.as_ref(), &named, &extra)?,
        };
        let (declared, special) = tokens(&by_id, &named, &extra);
        check_sides(&settings, whole.as_ref())?;

        let (vocab_file, vocab, merges) = vocabulary(dir, whole)?;
        let content = |key| {
            named
                .iter()
                .find(|(name, _)| *name == key)
                .map(|(_, entry)| entry.content.clone())
                .unwrap_or_default()
        };
        let unk = content("unk_token");
        if !vocab.contains_key(&unk) {
            return Err(TokenizerError::SpecialToken {
                path: vocab_file,
                role: "unk_token",
                token: unk,
            });
        }
        Ok(Self {
            vocab_file,
            vocab,
            merges,
            unk,
            bos: content("bos_token"),
            eos: content("eos_token"),
            pad: content("pad_token"),
            declared,
            special,
            split_special: settings.field("split_special_tokens")?.unwrap_or(false),
            max_length: settings.max_length()?,
        })
    }
}

/// Returns the added tokens by their ids, if there is no `added_tokens_decoder`. They are in
/// `added_tokens.json` and in `tokenizer.json`. If both files have an id, `tokenizer.json` counts.
fn added_tokens(
    settings: &Settings<'_>,
    whole: Option<&TokenizerJson>,
    named: &[(&str, Entry)],
    extra: &[Entry],
) -> Result<BTreeMap<u64, Entry>, TokenizerError> {
    let mut by_id = BTreeMap::new();
    let legacy: Option<Vocab> = optional(&settings.dir.join("added_tokens.json"), MOST_SETTINGS)?;
    // Defaults of names that the files leave out do not count here.
    let typed = named.iter().filter(|(key, _)| settings.get(key).is_some());
    let typed: HashSet<&str> = typed
        .map(|(_, entry)| entry)
        .chain(extra)
        .map(|entry| entry.content.as_str())
        .collect();
    for (content, id) in legacy.unwrap_or_default() {
        let special = typed.contains(content.as_str());
        by_id.insert(
            id.into(),
            Entry {
                special,
                normalized: Some(!special),
                ..Entry::from(content.as_str())
            },
        );
    }
    for token in whole.iter().flat_map(|file| &file.added_tokens) {
        by_id.insert(token.id.into(), token.entry.clone());
    }
    Ok(by_id)
}

/// Returns the tokens that the files list with an id, and then the other special tokens, both in
/// the order in which they are added to the vocabulary.
fn tokens(
    by_id: &BTreeMap<u64, Entry>,
    named: &[(&str, Entry)],
    extra: &[Entry],
) -> (Vec<AddedToken>, Vec<AddedToken>) {
    let names: HashSet<&str> = named
        .iter()
        .map(|(_, entry)| entry.content.as_str())
        .collect();
    let declared: Vec<AddedToken> = by_id
        .values()
        .map(|entry| entry.token(names.contains(entry.content.as_str())))
        .collect();
    // If a token is named twice, it is added twice, and the second spelling wins. In Stable
    // Diffusion 1.x's files the padding token is a plain string, so the end token matches only as
    // written.
    let listed: HashSet<&str> = declared
        .iter()
        .map(|token| token.content.as_str())
        .collect();
    let mut known = HashSet::new();
    let special = named
        .iter()
        .map(|(_, entry)| entry.token(true))
        .chain(
            extra
                .iter()
                .map(|entry| entry.token(names.contains(entry.content.as_str()))),
        )
        .filter(|token| !listed.contains(token.content.as_str()))
        .filter(|token| known.insert(token.clone()))
        .collect();
    (declared, special)
}

/// Rejects a tokenizer that truncates or pads on the left.
fn check_sides(
    settings: &Settings<'_>,
    whole: Option<&TokenizerJson>,
) -> Result<(), TokenizerError> {
    let direction = |section: fn(&TokenizerJson) -> &Value| {
        let side = section(whole?).get("direction")?;
        Some(("tokenizer.json", side))
    };
    for (key, inside) in [
        ("truncation_side", direction(|file| &file.truncation)),
        ("padding_side", direction(|file| &file.padding)),
    ] {
        if let Some((file, side)) = settings.get(key).or(inside)
            && !side
                .as_str()
                .is_some_and(|side| side.eq_ignore_ascii_case("right"))
        {
            return Err(TokenizerError::Setting {
                path: settings.dir.join(file),
                key,
                got: side.to_string(),
                expected: "\"right\"",
            });
        }
    }
    Ok(())
}

/// A special or added token in a file: a string or an object. Other keys, such as `__type`, are
/// ignored.
#[derive(Debug, Clone, Default, Deserialize)]
struct Entry {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    /// Whether the token is found in the normalized text. Default: true unless the token is
    /// special.
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

/// Creates a special token from a plain string.
impl From<&str> for Entry {
    fn from(content: &str) -> Self {
        Self {
            content: content.to_owned(),
            special: true,
            ..Self::default()
        }
    }
}

impl Entry {
    fn token(&self, special: bool) -> AddedToken {
        let token = AddedToken::from(self.content.as_str(), self.special || special);
        let normalized = self.normalized.unwrap_or(token.normalized);
        token
            .normalized(normalized)
            .single_word(self.single_word)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
    }
}

#[derive(Deserialize)]
struct TokenizerJson {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<Listed>,
    #[serde(default)]
    truncation: Value,
    #[serde(default)]
    padding: Value,
}

#[derive(Deserialize)]
struct Model {
    vocab: Vocab,
    merges: Vec<Merge>,
}

#[derive(Deserialize)]
struct Listed {
    id: u32,
    #[serde(flatten)]
    entry: Entry,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "a merge, either \"left right\" or [\"left\", \"right\"]"
)]
enum Merge {
    Line(String),
    Pair(String, String),
}

/// Returns the file with the vocabulary, the vocabulary, and the merges, each checked against the
/// vocabulary.
fn vocabulary(
    dir: &Path,
    whole: Option<TokenizerJson>,
) -> Result<(PathBuf, Vocab, Merges), TokenizerError> {
    let (path, merges_path, vocab, lines) = match whole {
        Some(TokenizerJson {
            model: Model { vocab, merges },
            ..
        }) => {
            let path = dir.join("tokenizer.json");
            (path.clone(), path, vocab, merges)
        }
        None => {
            let missing = |missing| TokenizerError::Missing {
                dir: dir.into(),
                missing,
            };
            let (path, merges_path) = (dir.join("vocab.json"), dir.join("merges.txt"));
            let vocab = optional(&path, MOST_VOCABULARY)?.ok_or_else(|| missing("vocab.json"))?;
            let text = text(&merges_path, MOST_VOCABULARY)?.ok_or_else(|| missing("merges.txt"))?;
            let lines = text.lines().filter(|line| !line.starts_with("#version"));
            (
                path,
                merges_path,
                vocab,
                lines.map(|line| Merge::Line(line.to_owned())).collect(),
            )
        }
    };
    if let Some((token, &id)) = vocab.iter().find(|&(_, &id)| id > i32::MAX as u32) {
        return Err(TokenizerError::Id {
            path,
            token: token.clone(),
            id,
        });
    }
    let merges = lines.into_iter().enumerate();
    let merges: Result<Merges, _> = merges
        .map(|(index, merge)| merge.checked(&vocab, &merges_path, index + 1))
        .collect();
    Ok((path, vocab, merges?))
}

impl Merge {
    /// Returns the two parts of the merge, after checking that the vocabulary has them and their
    /// join. `number` is the number of the merge in its file, for errors.
    fn checked(
        self,
        vocab: &Vocab,
        path: &Path,
        number: usize,
    ) -> Result<(String, String), TokenizerError> {
        let (left, right) = match self {
            Self::Pair(left, right) => (left, right),
            Self::Line(text) => match text.split_once(' ') {
                Some((left, right)) if !right.contains(' ') => (left.to_owned(), right.to_owned()),
                _ => {
                    return Err(TokenizerError::Merge {
                        path: path.into(),
                        number,
                        text,
                    });
                }
            },
        };
        let joined = format!("{left}{right}");
        if let Some(token) = [&left, &right, &joined]
            .into_iter()
            .find(|token| !vocab.contains_key(*token))
        {
            return Err(TokenizerError::MergeToken {
                path: path.into(),
                number,
                token: token.clone(),
            });
        }
        Ok((left, right))
    }
}

/// The values of `tokenizer_config.json` and the files that override it, each with its file.
struct Settings<'a> {
    dir: &'a Path,
    values: BTreeMap<String, (&'static str, Value)>,
}

impl Settings<'_> {
    fn overlay(&mut self, file: &'static str) -> Result<(), TokenizerError> {
        let map: Option<Map<String, Value>> = optional(&self.dir.join(file), MOST_SETTINGS)?;
        for (key, mut value) in map.unwrap_or_default() {
            // The extra tokens of both files count.
            if let ("extra_special_tokens", Some((_, Value::Array(known))), Value::Array(more)) =
                (key.as_str(), self.values.get(&key), &mut value)
            {
                more.splice(0..0, known.iter().cloned());
            }
            self.values.insert(key, (file, value));
        }
        Ok(())
    }

    /// Returns a value that is not null, with its file.
    fn get(&self, key: &str) -> Option<(&'static str, &Value)> {
        self.values
            .get(key)
            .filter(|(_, value)| !value.is_null())
            .map(|(file, value)| (*file, value))
    }

    /// Returns the named special tokens with their keys, in the order in which they are added.
    fn named(&self) -> Result<Vec<(&str, Entry)>, TokenizerError> {
        let mut named = Vec::new();
        for (key, default) in NAMED {
            if let Some(entry) = self.entry(key)?.or(default.map(Entry::from)) {
                named.push((key, entry));
            }
        }
        // transformers treats any other string named `…_token` as a special token of the model.
        for (key, (_, value)) in &self.values {
            if key.ends_with("_token")
                && value.is_string()
                && !NAMED.iter().any(|(name, _)| name == key)
            {
                named.extend(self.entry(key)?.map(|entry| (key.as_str(), entry)));
            }
        }
        Ok(named)
    }

    fn field<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, TokenizerError> {
        self.get(key)
            .map(|(file, value)| self.parse(file, key, value))
            .transpose()
    }

    fn entry(&self, key: &str) -> Result<Option<Entry>, TokenizerError> {
        self.get(key)
            .map(|(file, value)| self.parse_entry(file, key, value))
            .transpose()
    }

    /// Returns the extra special tokens: a list without names, or an object with names, under the
    /// current or the former key.
    fn extra(&self) -> Result<Vec<Entry>, TokenizerError> {
        for key in ["extra_special_tokens", "additional_special_tokens"] {
            let (file, values): (_, Vec<&Value>) = match self.get(key) {
                Some((file, Value::Array(list))) => (file, list.iter().collect()),
                Some((file, Value::Object(names))) => (file, names.values().collect()),
                _ => continue,
            };
            if !values.is_empty() {
                return values
                    .into_iter()
                    .map(|value| self.parse_entry(file, key, value))
                    .collect();
            }
        }
        Ok(Vec::new())
    }

    fn max_length(&self) -> Result<usize, TokenizerError> {
        let named = ["model_max_length", "max_len"]
            .into_iter()
            .find_map(|key| Some((key, self.get(key)?)));
        let Some((key, (file, value))) = named else {
            return Ok(CLIP_LENGTH);
        };
        match value.as_u64() {
            Some(length @ 2..=MOST_LENGTH) => Ok(length as usize),
            _ if value.as_f64().is_some_and(|length| length > NO_LIMIT) => Ok(CLIP_LENGTH),
            _ => {
                let expected =
                    "a whole number from 2 to 65536, or a number above 1e20 for no limit";
                Err(TokenizerError::Setting {
                    path: self.dir.join(file),
                    key,
                    got: value.to_string(),
                    expected,
                })
            }
        }
    }

    fn parse_entry(&self, file: &str, key: &str, value: &Value) -> Result<Entry, TokenizerError> {
        match value.as_str() {
            Some(content) => Ok(Entry::from(content)),
            None => self.parse(file, key, value),
        }
    }

    fn parse<T: DeserializeOwned>(
        &self,
        file: &str,
        key: &str,
        value: &Value,
    ) -> Result<T, TokenizerError> {
        T::deserialize(value).map_err(|error| TokenizerError::Json {
            path: self.dir.join(file),
            key: Some(key.into()),
            problem: error.to_string(),
        })
    }
}

/// Reads JSON from a file of at most `most` bytes. Returns `None` if there is no such file.
fn optional<T: DeserializeOwned>(path: &Path, most: u64) -> Result<Option<T>, TokenizerError> {
    let json = |error: serde_json::Error| TokenizerError::Json {
        path: path.into(),
        key: None,
        problem: error.to_string(),
    };
    text(path, most)?
        .map(|text| serde_json::from_str(&text).map_err(json))
        .transpose()
}

fn text(path: &Path, most: u64) -> Result<Option<String>, TokenizerError> {
    match outside::read_to_string(path, most) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TokenizerError::Read {
            path: path.into(),
            source,
        }),
    }
}
