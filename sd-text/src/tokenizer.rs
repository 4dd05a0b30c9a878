//! CLIP's byte-level byte-pair tokenizer: turns a prompt into 77 ids and reports the text that did
//! not fit.

mod files;
mod letters;
mod names;
#[cfg(feature = "vocabulary")]
mod vocabulary;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{
    Lowercase, NFC, Replace, Sequence as Normalizers, replace::ReplacePattern,
};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{Encoding, SplitDelimiterBehavior, Tokenizer};

use files::{Files, Merges, Vocab};
use names::Names;
pub(crate) use names::{Piece, count};

use crate::{
    Cleanup, InversionError, NamedInversion, TextualInversion,
    outside::{chain, printable},
};

/// The most tokens in the name of a textual inversion: the most bytes that a file name can have.
const MOST_NAME: usize = 255;

/// CLIP's tokenizer, read from a model's `tokenizer` folder.
///
/// It produces the same ids as `CLIPTokenizer` of transformers 5.23
/// (`models/clip/tokenization_clip.py`):
///
/// 1. The text is normalized: NFC, every run of white space replaced by one space, lower case.
/// 2. It is split into contractions, runs of letters, single digits, and runs of other characters.
/// 3. The bytes of each piece become tokens, and pairs of tokens are merged. `</w>` marks the end
///    of a word.
///
/// Special tokens in a prompt are found before these steps, in the original text, and keep their
/// ids. Stable Diffusion 2's tokenizer pads with `!`, so every `!` in a prompt becomes the padding
/// token, in transformers and here.
///
/// ```
/// let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji/tokenizer");
/// let tokenizer = sd_text::ClipTokenizer::load(folder)?;
/// let tokens = tokenizer.encode("A cat");
/// assert_eq!(tokens.ids[..tokens.used], [49406, 320, 2368, 49407]);
/// assert_eq!(tokens.ids.len(), 77);
/// # Ok::<(), sd_text::TokenizerError>(())
/// ```
#[derive(Debug)]
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    max_length: usize,
    vocab_size: usize,
    bos: u32,
    eos: u32,
    pad: u32,
    comma: Option<u32>,
    names: Names,
}

impl ClipTokenizer {
    /// Reads a tokenizer folder, as `CLIPTokenizer.from_pretrained` of transformers 5.23 does
    /// (`tokenization_utils_base.py`, `tokenization_utils_tokenizers.py`).
    ///
    /// These files are read:
    ///
    /// - `tokenizer.json` if it exists, otherwise `vocab.json` and `merges.txt`. Only the
    ///   vocabulary, the merges and the added tokens of `tokenizer.json` are used. The normalizer,
    ///   the splitting and the templates are always CLIP's.
    /// - `tokenizer_config.json`, optional. These keys are used: `bos_token`, `eos_token`,
    ///   `unk_token`, `pad_token` and other special tokens, as strings or as objects with a
    ///   `content`; `added_tokens_decoder`; `split_special_tokens`; `model_max_length`, 2 to 65536.
    /// - `special_tokens_map.json`, `added_tokens.json` and the `added_tokens` of `tokenizer.json`,
    ///   optional. They are read only if there is no `added_tokens_decoder`.
    ///   `special_tokens_map.json` overrides `tokenizer_config.json`.
    ///
    /// Defaults:
    ///
    /// - `bos_token`: `<|startoftext|>`.
    /// - `eos_token`, `unk_token` and `pad_token`: `<|endoftext|>`.
    /// - `model_max_length`: 77, also if the file says "none" with a number above 10²⁰.
    ///
    /// # Errors
    /// A [`TokenizerError`] that names the file and the problem. Loading also fails where
    /// transformers would continue with a tokenizer that no model can use: one without a
    /// vocabulary, or one with a named special token that was appended to the vocabulary without an
    /// embedding.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let dir = dir.as_ref();
        Self::new(Files::read(dir)?, dir)
    }

    /// Returns CLIP's tokenizer with CLIP's own vocabulary, which the Cargo feature `vocabulary`
    /// includes in this crate.
    ///
    /// Use it for models that come without a vocabulary, such as single-file checkpoints. It is the
    /// tokenizer of Stable Diffusion 1.x: it pads with `<|endoftext|>` and takes 77 tokens.
    ///
    /// ```
    /// let tokens = sd_text::ClipTokenizer::clip().encode("A cat");
    /// assert_eq!(tokens.ids[..tokens.used], [49406, 320, 2368, 49407]);
    /// ```
    #[cfg(feature = "vocabulary")]
    pub fn clip() -> Self {
        Self::new(Files::clip(), Path::new("CLIP's vocabulary"))
            .expect("the vocabulary is constant and tested")
    }

    /// Sets the padding token. Stable Diffusion 2 and the second text encoder of SDXL were trained
    /// with `!`.
    ///
    /// ```
    /// # #[cfg(feature = "vocabulary")]
    /// # {
    /// let tokenizer = sd_text::ClipTokenizer::clip().padded_with("!")?;
    /// assert_eq!(tokenizer.pad(), 0);
    /// assert!(tokenizer.padded_with("no such token").is_err());
    /// # }
    /// # Ok::<(), sd_text::TokenizerError>(())
    /// ```
    ///
    /// # Errors
    /// [`TokenizerError::SpecialToken`] if the vocabulary has no such token.
    pub fn padded_with(mut self, token: &str) -> Result<Self, TokenizerError> {
        let id = self.tokenizer.token_to_id(token);
        self.pad = id.ok_or_else(|| TokenizerError::SpecialToken {
            path: "the vocabulary".into(),
            role: "pad_token",
            token: token.to_owned(),
        })?;
        Ok(self)
    }

    fn new(files: Files, dir: &Path) -> Result<Self, TokenizerError> {
        let Files {
            vocab_file,
            vocab,
            merges,
            unk,
            bos,
            eos,
            pad,
            declared,
            special,
            split_special,
            max_length,
        } = files;
        let backend = |error: crate::BoxError| TokenizerError::Backend {
            dir: dir.into(),
            problem: chain(&*error),
        };

        let vocab_end = vocab.values().max().map_or(0, |&id| id as usize + 1);
        let mut tokenizer = without_added_tokens(vocab, merges, unk).map_err(backend)?;
        tokenizer.set_encode_special_tokens(split_special);
        tokenizer.add_tokens(declared).map_err(backend)?;

        let id = |role, token: String| {
            tokenizer
                .token_to_id(&token)
                .ok_or_else(|| TokenizerError::SpecialToken {
                    path: vocab_file.clone(),
                    role,
                    token,
                })
        };
        let (bos, eos, pad) = (
            id("bos_token", bos)?,
            id("eos_token", eos)?,
            id("pad_token", pad)?,
        );
        tokenizer.add_tokens(special).map_err(backend)?;
        let added_end = tokenizer
            .get_added_vocabulary()
            .get_vocab()
            .values()
            .max()
            .map_or(0, |&id| id as usize + 1);
        Ok(Self {
            comma: tokenizer.token_to_id(",</w>"),
            tokenizer,
            max_length,
            vocab_size: vocab_end.max(added_end),
            bos,
            eos,
            pad,
            names: Names::default(),
        })
    }

    /// Maps the names of a textual inversion to ids for its vectors, and returns the ids.
    ///
    /// The ids start at `first`. The text model must have the vectors in these rows of its
    /// embedding.
    ///
    /// Names are found as in WebUI, by their tokens wherever these follow each other. So case does
    /// not matter, a name is also found at the end of a longer word, and the name with the most
    /// tokens wins. A name of one token, such as `tree`, replaces that word. If the tokenizer joins
    /// punctuation to the end of a name, the name is not found: the last token of `<cat-toy>,` is
    /// `>,`. A name that [`Cleanup::Ftfy`] would change, such as one with a curly apostrophe, is
    /// found in both spellings.
    ///
    /// If one of two [`names`](TextualInversion::names) cannot be used, only the other is added,
    /// and [`inversion`](Self::inversion) returns it.
    ///
    /// ```
    /// use ndarray::Array2;
    /// use sd_text::{ClipTokenizer, TextualInversion};
    ///
    /// let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji/tokenizer");
    /// let mut tokenizer = ClipTokenizer::load(folder)?;
    /// let inversion = TextualInversion::new("<cat-toy>", Array2::zeros((2, 768)))?;
    /// let first = tokenizer.vocab_size() as u32;
    /// tokenizer.add_inversion(&inversion, first)?;
    ///
    /// let tokens = tokenizer.encode("a <cat-toy>");
    /// assert_eq!(tokens.ids[2..4], [first, first + 1]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// - [`InversionError::Name`] if no name can be used: a name must have 1 to 255 tokens, must
    ///   not contain the first or the last token of a text, and must not belong to another
    ///   inversion.
    /// - [`InversionError::Tensor`] if there are more vectors than a chunk has room for.
    /// - [`InversionError::Ids`] if `first` is below [`vocab_size`](Self::vocab_size), or if an id
    ///   would exceed 2147483646.
    pub fn add_inversion(
        &mut self,
        inversion: &TextualInversion,
        first: u32,
    ) -> Result<Range<u32>, InversionError> {
        let room = self.max_length - 2;
        if inversion.count() > room {
            return Err(inversion.unfit(
                format!("{} vectors", inversion.count()),
                format!("at most {room}, the room in a chunk"),
            ));
        }
        let (vocabulary, ids) = (
            self.vocab_size,
            first..first.saturating_add(inversion.count() as u32),
        );
        if (first as usize) < vocabulary || ids.end > i32::MAX as u32 {
            return Err(InversionError::Ids {
                path: inversion.path().into(),
                found: first,
                expected: vocabulary,
            });
        }
        let mut usable = Vec::new();
        let mut problem = None;
        for name in inversion.names() {
            match self.spellings(name) {
                Ok(spellings) => usable.push((name, spellings)),
                Err(found) => problem = problem.or(Some(found)),
            }
        }
        let Some((name, _)) = usable.first() else {
            return Err(inversion.name_taken(problem.unwrap_or_default()));
        };
        let named = NamedInversion {
            name: name.to_string(),
            sha256: inversion.sha256().to_owned(),
        };
        let spellings = usable.into_iter().flat_map(|(_, spellings)| spellings);
        self.names.add(named, spellings, ids.clone());
        self.vocab_size = ids.end as usize;
        Ok(ids)
    }

    /// Returns the tokens by which a name is found, or the reason why it cannot be used as a name.
    fn spellings(&self, name: &str) -> Result<[Vec<u32>; 2], String> {
        let spellings = [Cleanup::Transformers, Cleanup::Ftfy]
            .map(|cleanup| self.encoding(&cleanup.apply(name)).get_ids().to_vec());
        for tokens in &spellings {
            let special = |id: &&u32| **id == self.bos || **id == self.eos;
            if tokens.is_empty() {
                return Err("nothing that is a token".to_owned());
            }
            if tokens.len() > MOST_NAME {
                return Err(format!("{} tokens, more than {MOST_NAME}", tokens.len()));
            }
            if let Some(&id) = tokens.iter().find(special) {
                let token = self.token(id).unwrap_or_default();
                return Err(format!("the vocabulary's token {token:?} ({id}) in it"));
            }
            if let Some(other) = self.names.named(tokens) {
                return Err(format!("the textual inversion \"{}\"", printable(other)));
            }
        }
        Ok(spellings)
    }

    /// Tokenizes a prompt of any content and length: BOS, the text, EOS, then padding up to
    /// [`max_length`](Self::max_length). Text that does not fit is cut off at the end and reported
    /// in [`Tokens::cut`].
    pub fn encode(&self, text: &str) -> Tokens {
        let pieces = self.pieces(text).into_iter();
        let all: Vec<(u32, usize)> = pieces
            .flat_map(|Piece { ids, start }| ids.map(move |id| (id, start)))
            .collect();
        let kept = all.len().min(self.max_length - 2);

        let mut ids = Vec::with_capacity(self.max_length);
        ids.push(self.bos);
        ids.extend(all[..kept].iter().map(|(id, _)| id));
        ids.push(self.eos);
        ids.resize(self.max_length, self.pad);

        let cut = all.get(kept).map(|&(_, start)| {
            let offset = text.floor_char_boundary(start);
            Cut {
                tokens: all.len() - kept,
                text: text[offset..].to_owned(),
                offset,
            }
        });
        Tokens {
            ids,
            used: kept + 2,
            cut,
        }
    }

    /// Returns all ids of a text of any content and length, without BOS, EOS and padding.
    ///
    /// ```
    /// use sd_text::{Cleanup, ClipTokenizer};
    ///
    /// let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji/tokenizer");
    /// let tokenizer = ClipTokenizer::load(folder)?;
    /// let plain = tokenizer.tokenize("cat & owl", Cleanup::Transformers);
    /// assert_eq!(plain.len(), 3);
    /// assert_eq!(tokenizer.tokenize("cat &amp; owl", Cleanup::Ftfy), plain);
    /// # Ok::<(), sd_text::TokenizerError>(())
    /// ```
    pub fn tokenize(&self, text: &str, cleanup: Cleanup) -> Vec<u32> {
        let pieces = self.pieces(&cleanup.apply(text)).into_iter();
        pieces.flat_map(|piece| piece.ids).collect()
    }

    /// Returns the token with an id, such as `fox</w>`, where `</w>` is the end of a word. For the
    /// ids of a textual inversion, this is the inversion's name. Bytes that are not valid UTF-8 are
    /// shown as `�`. Returns `None` if nothing has this id.
    pub fn token(&self, id: u32) -> Option<String> {
        if let Some(inversion) = self.inversion(id) {
            return Some(inversion.name.clone());
        }
        let token = self.tokenizer.id_to_token(id)?;
        Some(letters::decode(&token).unwrap_or(token))
    }

    /// Returns the textual inversion to which an id belongs, if any.
    pub fn inversion(&self, id: u32) -> Option<&NamedInversion> {
        self.names.of(id)
    }

    /// Returns the number of rows that an embedding needs, which is the largest id plus one. 49408
    /// in CLIP.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Returns the number of ids that [`encode`](Self::encode) returns, at least 2. 77 in CLIP, of
    /// which 75 are for the text.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// Returns the id of the first token, `<|startoftext|>`. 49406 in CLIP.
    pub fn bos(&self) -> u32 {
        self.bos
    }

    /// Returns the id after the text, `<|endoftext|>`. 49407 in CLIP.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// Returns the id of the token for a separate comma, `,</w>`, at which long prompts are split.
    /// 267 in CLIP. `None` if the vocabulary has no such token.
    pub fn comma(&self) -> Option<u32> {
        self.comma
    }

    /// Returns the padding id: the id of `<|endoftext|>` in Stable Diffusion 1.x, and 0 (`!`) in
    /// 2.x.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// Returns whether another tokenizer returns the same ids for every text.
    ///
    /// This is so if it has the [same tokens](Self::has_same_tokens) and there are no [differences
    /// in special tokens](Self::special_differences). The names of textual inversions are not
    /// compared.
    pub fn is_same(&self, other: &Self) -> bool {
        self.has_same_tokens(other) && self.special_differences(other).is_empty()
    }

    /// Returns whether another tokenizer has the same tokens with the same ids, the same length,
    /// and the same first, last and padding token.
    pub fn has_same_tokens(&self, other: &Self) -> bool {
        let marks = |it: &Self| (it.max_length, it.vocab_size, it.bos, it.eos, it.pad);
        let vocabulary = |it: &Self| it.tokenizer.get_vocab(true);
        marks(self) == marks(other) && vocabulary(self) == vocabulary(other)
    }

    /// Returns the special tokens that two tokenizers read differently in a text, sorted.
    ///
    /// One of the two finds such a token anywhere in a text, and the other reads it as ordinary
    /// text. Whether a token with other capitalization, such as `<|ENDOFTEXT|>`, is also found is
    /// not compared.
    ///
    /// ```
    /// # #[cfg(feature = "vocabulary")]
    /// # {
    /// use sd_text::ClipTokenizer;
    ///
    /// let folder = tempfile::tempdir()?;
    /// for (name, text) in ClipTokenizer::clip_files("!") {
    ///     std::fs::write(folder.path().join(name), text)?;
    /// }
    /// // In a folder, the padding token is a special token.
    /// let of_folder = ClipTokenizer::load(folder.path())?;
    /// let own = ClipTokenizer::clip().padded_with("!")?;
    /// assert_eq!(own.special_differences(&of_folder), ["!"]);
    /// assert_eq!([own, of_folder].map(|it| it.encode("!").ids[1]), [256, 0]);
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn special_differences(&self, other: &Self) -> Vec<String> {
        let [own, others] = [self.found(), other.found()];
        let all: BTreeSet<_> = own.keys().chain(others.keys()).copied().collect();
        let differs = all
            .into_iter()
            .filter(|token| own.get(token) != others.get(token));
        differs.map(str::to_owned).collect()
    }

    /// Returns the tokens that are found in a text before it is split. Each has its id, whether it
    /// must be a whole word, and whether it includes the white space before and after it.
    fn found(&self) -> BTreeMap<&str, (u32, [bool; 3])> {
        let added = self.tokenizer.get_added_vocabulary();
        let tokens = added.get_added_tokens_decoder().iter();
        let found = tokens.filter(|(_, token)| {
            // With this setting of the files, special tokens are ordinary text.
            !(token.special && added.get_encode_special_tokens())
        });
        let found = found.map(|(&id, token)| {
            let around = [token.single_word, token.lstrip, token.rstrip];
            (token.content.as_str(), (id, around))
        });
        found.collect()
    }

    /// Returns the tokens of a text, each with the byte at which it begins.
    pub(crate) fn pieces(&self, text: &str) -> Vec<Piece> {
        let encoding = self.encoding(text);
        self.names
            .pieces(encoding.get_ids(), encoding.get_offsets())
    }

    fn encoding(&self, text: &str) -> Encoding {
        self.tokenizer
            .encode(text, false)
            .expect("a text can only fail on an unknown token outside the vocabulary, which loading rules out")
    }
}

/// A tokenized prompt.
///
/// With serde it is an object with a key for each field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tokens {
    /// The token ids: BOS, text, EOS, padding. There are [`ClipTokenizer::max_length`] of them.
    pub ids: Vec<u32>,
    /// The number of tokens before the padding, including BOS and EOS. At least 2.
    pub used: usize,
    /// The text that did not fit, if any.
    pub cut: Option<Cut>,
}

/// The end of a text that did not fit.
///
/// With serde it is an object with a key for each field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cut {
    /// The number of tokens that were dropped, at least 1.
    pub tokens: usize,
    /// The text of the dropped tokens: everything from [`offset`](Self::offset) on. If only some of
    /// the tokens of a character were dropped, the whole character is included.
    pub text: String,
    /// The byte of the tokenized text at which the dropped text starts.
    pub offset: usize,
}

/// The error of loading a tokenizer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The folder has no vocabulary.
    #[error("no tokenizer in {}: expected `tokenizer.json`, or `vocab.json` and `merges.txt`; `{missing}` is missing", printable(.dir.display()))]
    Missing {
        /// The folder.
        dir: PathBuf,
        /// The missing file.
        missing: &'static str,
    },
    /// A file exists but cannot be read: it is not a regular file, too large, empty or not UTF-8,
    /// or it is a web page or a Git LFS pointer instead of the file.
    #[error("{}: cannot be read", printable(.path.display()))]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A file is not JSON, or its JSON does not have the expected form.
    #[error("{}: {}{}", printable(.path.display()), .key.as_ref().map(|key| format!("`{}`: ", printable(key))).unwrap_or_default(), printable(.problem))]
    Json {
        /// The file.
        path: PathBuf,
        /// The entry in the file, or `None` if the error concerns the whole file.
        key: Option<String>,
        /// What was expected, with the line and column if the text is not JSON.
        problem: String,
    },
    /// An id is too large.
    #[error("{}: token \"{}\" has the id {id}, expected at most {}", printable(.path.display()), printable(.token), i32::MAX)]
    Id {
        /// The file.
        path: PathBuf,
        /// The token.
        token: String,
        /// Its id.
        id: u32,
    },
    /// A merge does not consist of two tokens.
    #[error("{}: merge {number} is \"{}\", expected two tokens separated by one space", printable(.path.display()), printable(.text))]
    Merge {
        /// The file.
        path: PathBuf,
        /// The number of the merge, counted from 1. A `#version` line is not counted.
        number: usize,
        /// The text of the merge.
        text: String,
    },
    /// A merge needs a token that is not in the vocabulary.
    #[error("{}: merge {number} needs the token \"{}\", which is not in the vocabulary", printable(.path.display()), printable(.token))]
    MergeToken {
        /// The file.
        path: PathBuf,
        /// The number of the merge, counted from 1. A `#version` line is not counted.
        number: usize,
        /// The missing token: the left one, the right one, or both joined.
        token: String,
    },
    /// A special token has no id.
    #[error("{}: the {role} \"{}\" is not in the vocabulary", printable(.path.display()), printable(.token))]
    SpecialToken {
        /// The file that contains the vocabulary.
        path: PathBuf,
        /// `bos_token`, `eos_token`, `unk_token` or `pad_token`.
        role: &'static str,
        /// The token.
        token: String,
    },
    /// A setting has a value that no CLIP model can have.
    #[error("{}: `{key}` is {}, expected {expected}", printable(.path.display()), printable(.got))]
    Setting {
        /// The file.
        path: PathBuf,
        /// The setting.
        key: &'static str,
        /// Its value, as JSON.
        got: String,
        /// The values that are possible.
        expected: &'static str,
    },
    /// The tokenizer library rejects the contents of the files.
    #[error("{}: {}", printable(.dir.display()), printable(.problem))]
    Backend {
        /// The folder.
        dir: PathBuf,
        /// The library's message.
        problem: String,
    },
}

/// Builds the tokenizer with CLIP's normalizer and splitting.
fn without_added_tokens(
    vocab: Vocab,
    merges: Merges,
    unk: String,
) -> tokenizers::Result<Tokenizer> {
    let model = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .unk_token(unk)
        .continuing_subword_prefix(String::new())
        .end_of_word_suffix("</w>".into())
        .build()?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_normalizer(Some(normalizer()?))?;
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer()?));
    Ok(tokenizer)
}

fn normalizer() -> tokenizers::Result<Normalizers> {
    let space = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ")?;
    Ok(Normalizers::new(vec![
        NFC.into(),
        space.into(),
        Lowercase.into(),
    ]))
}

fn pre_tokenizer() -> tokenizers::Result<PreTokenizers> {
    let words = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
    let split = Split::new(
        SplitPattern::Regex(words.into()),
        SplitDelimiterBehavior::Removed,
        true,
    )?;
    // No space is added in front. `trim_offsets`, the second argument, has no effect in a
    // pre-tokenizer. GPT-2's pattern then splits further, as it does in transformers.
    let bytes = ByteLevel::new(false, true, true);
    Ok(PreTokenizers::new(vec![split.into(), bytes.into()]))
}
