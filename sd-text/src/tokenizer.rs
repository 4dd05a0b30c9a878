//! CLIP's byte-level byte-pair tokenizer: 77 ids for a prompt, and what of it did not fit.

mod files;
mod letters;
mod names;
#[cfg(feature = "vocabulary")]
mod vocabulary;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{
    Lowercase, NFC, Replace, Sequence as Normalizers, replace::ReplacePattern,
};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{Encoding, SplitDelimiterBehavior, Tokenizer};

use files::Files;
use names::Names;
pub(crate) use names::{Piece, count};

use crate::{Cleanup, InversionError, NamedInversion, TextualInversion, outside::printable};

/// The most tokens of a textual inversion's name: as many as the bytes that a file's name can have.
const MOST_NAME: usize = 255;

/// CLIP's tokenizer, read from a model's own `tokenizer` folder.
///
/// Gives the ids that `CLIPTokenizer` of transformers 5.23 gives (`models/clip/tokenization_clip.py`): NFC, every run of
/// white space to one space, lower case; split into contractions, runs of letters, single digits and runs of the rest;
/// bytes; byte pairs merged with `</w>` at the end of a word. Special tokens that stand in the text are found before
/// that, in the text as it was typed, and have their own ids, as there. The one of Stable Diffusion 2 pads with `!`,
/// so every `!` in a prompt becomes the padding token, in transformers and here.
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
    /// Reads a tokenizer folder, as transformers 5.23's `CLIPTokenizer.from_pretrained` does
    /// (`tokenization_utils_base.py`, `tokenization_utils_tokenizers.py`):
    ///
    /// - `tokenizer.json` if it is there, else `vocab.json` and `merges.txt`. Of `tokenizer.json` only the vocabulary,
    ///   the merges and the added tokens count; its normalizer, splitting and templates are CLIP's own in any case.
    /// - `tokenizer_config.json`, optional: `bos_token`, `eos_token`, `unk_token`, `pad_token` and other special tokens,
    ///   as strings or as objects with a `content`; `added_tokens_decoder`; `split_special_tokens`; `model_max_length`,
    ///   which is 77 when it is absent or says "none" (over 10²⁰). Defaults: `<|startoftext|>` for the first,
    ///   `<|endoftext|>` for the other three.
    /// - `special_tokens_map.json`, `added_tokens.json` and `tokenizer.json`'s `added_tokens`, optional, and read only
    ///   when there is no `added_tokens_decoder`. The first overrides `tokenizer_config.json`.
    ///
    /// Where transformers would go on with a tokenizer that can't serve a model (no vocabulary at all, or a named
    /// special token appended to it without an embedding), this is an error.
    ///
    /// # Errors
    /// [`TokenizerError`], which names the file and what is wrong in it.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let dir = dir.as_ref();
        Self::new(Files::read(dir)?, dir)
    }

    /// CLIP's tokenizer with CLIP's own vocabulary, which this crate carries with its feature `vocabulary`: for models
    /// that bring none, as single-file checkpoints don't. It is that of Stable Diffusion 1.x, which pads with
    /// `<|endoftext|>`, and takes 77 tokens.
    ///
    /// ```
    /// let tokens = sd_text::ClipTokenizer::clip().encode("A cat");
    /// assert_eq!(tokens.ids[..tokens.used], [49406, 320, 2368, 49407]);
    /// ```
    #[cfg(feature = "vocabulary")]
    pub fn clip() -> Self {
        Self::new(Files::clip(), Path::new("CLIP's vocabulary"))
            .expect("a vocabulary that never changes, and was tested")
    }

    /// Fills texts up with another token, such as `!`, which Stable Diffusion 2 and the second text
    /// encoder of SDXL were trained with.
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
        let backend = |source| TokenizerError::Backend {
            dir: dir.into(),
            source,
        };

        let vocab_end = vocab.values().max().map_or(0, |&id| id as usize + 1);
        let model = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .unk_token(unk)
            .continuing_subword_prefix(String::new())
            .end_of_word_suffix("</w>".into())
            .build()
            .map_err(backend)?;
        let mut tokenizer = Tokenizer::new(model);
        tokenizer
            .with_normalizer(Some(normalizer().map_err(backend)?))
            .map_err(backend)?;
        tokenizer.with_pre_tokenizer(Some(pre_tokenizer().map_err(backend)?));
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

    /// Makes the names of a textual inversion stand for its vectors, as ids from `first` on, which
    /// it returns: the rows at which the text model is to find them.
    ///
    /// A name is found as WebUI finds it: by its tokens, so that case does not count, wherever they
    /// follow each other, at the end of a longer word too. Of several names the one of the most
    /// tokens is taken. A name of one token, such as `tree`, takes the place of that word. A sign
    /// that the tokenizer joins to the name's end hides it: the last token of `<cat-toy>,` is `>,`.
    /// A name that [`Cleanup::Ftfy`] writes otherwise, such as one with a curly apostrophe, is
    /// found in both spellings.
    ///
    /// Of two [`names`](TextualInversion::names) one that cannot be used is left out;
    /// [`inversion`](Self::inversion) then has the other.
    ///
    /// # Errors
    /// [`InversionError::Name`] if every name has no tokens or more than 255, has the first or the
    /// last token of a text in it, or is another inversion's; [`InversionError::Tensor`] if there
    /// are more vectors than a chunk has room for; [`InversionError::Ids`] if `first` is below
    /// [`vocab_size`](Self::vocab_size).
    pub fn add_inversion(
        &mut self,
        inversion: &TextualInversion,
        first: u32,
    ) -> Result<Range<u32>, InversionError> {
        let room = self.max_length - 2;
        if inversion.count() > room {
            return Err(inversion.unfit(
                format!("{} vectors", inversion.count()),
                format!("at most {room}, what a chunk has room for"),
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

    /// The tokens by which a name is found, or what keeps it from being one.
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

    /// The ids of a prompt, of any content and length: BOS, the text, EOS, then padding up to
    /// [`max_length`](Self::max_length). Text that doesn't fit is left out at the end, and told in [`Tokens::cut`].
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

    /// All ids of a text, of any content and length, without BOS, EOS and padding.
    pub fn tokenize(&self, text: &str, cleanup: Cleanup) -> Vec<u32> {
        let pieces = self.pieces(&cleanup.apply(text)).into_iter();
        pieces.flat_map(|piece| piece.ids).collect()
    }

    /// What an id stands for: `fox</w>`, where `</w>` is the end of a word; a textual inversion's name for each of its
    /// ids. None if nothing has that id. Bytes that are no text of their own are shown as `�`.
    pub fn token(&self, id: u32) -> Option<String> {
        if let Some(inversion) = self.inversion(id) {
            return Some(inversion.name.clone());
        }
        let token = self.tokenizer.id_to_token(id)?;
        Some(letters::decode(&token).unwrap_or(token))
    }

    /// The textual inversion that an id is a vector of.
    pub fn inversion(&self, id: u32) -> Option<&NamedInversion> {
        self.names.of(id)
    }

    /// One more than the largest id: the rows an embedding needs. 49408 in CLIP.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// How many ids [`encode`](Self::encode) gives, from 2 on. 77 in CLIP, of which 75 are for the text.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// The id of the first token, `<|startoftext|>`. 49406 in CLIP.
    pub fn bos(&self) -> u32 {
        self.bos
    }

    /// The id after the text, `<|endoftext|>`. 49407 in CLIP.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// The id of a comma that is a token of its own, `,</w>`, at which long prompts are parted. 267 in CLIP.
    pub fn comma(&self) -> Option<u32> {
        self.comma
    }

    /// The id that fills the rest: that of `<|endoftext|>` in Stable Diffusion 1.x, 0 (`!`) in 2.x.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// Whether another tokenizer gives the same ids for every text: it has the
    /// [same tokens](Self::has_same_tokens), and there are no
    /// [differences in special tokens](Self::special_differences). Names of textual inversions are
    /// not compared.
    pub fn is_same(&self, other: &Self) -> bool {
        self.has_same_tokens(other) && self.special_differences(other).is_empty()
    }

    /// Whether another tokenizer has the same tokens under the same ids, the same length and the
    /// same first, last and padding token.
    pub fn has_same_tokens(&self, other: &Self) -> bool {
        let marks = |it: &Self| (it.max_length, it.vocab_size, it.bos, it.eos, it.pad);
        let vocabulary = |it: &Self| it.tokenizer.get_vocab(true);
        marks(self) == marks(other) && vocabulary(self) == vocabulary(other)
    }

    /// Returns the special tokens, sorted, that a text may have in it and that two tokenizers do
    /// not read alike: one of the two finds it as a token, wherever it stands, and the other reads
    /// it as any text. Whether a token in other letters than its own, such as `<|ENDOFTEXT|>`, is
    /// found too is not compared.
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
    /// // A folder's padding token is a special one.
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

    /// The tokens that are found in a text before it is split, each with its id and with how much
    /// of the text around it counts.
    fn found(&self) -> BTreeMap<&str, (u32, [bool; 3])> {
        let added = self.tokenizer.get_added_vocabulary();
        let tokens = added.get_added_tokens_decoder().iter();
        let found = tokens.filter(|(_, token)| {
            // A setting of the files: special tokens are text like any other.
            !(token.special && added.get_encode_special_tokens())
        });
        let found = found.map(|(&id, token)| {
            let around = [token.single_word, token.lstrip, token.rstrip];
            (token.content.as_str(), (id, around))
        });
        found.collect()
    }

    /// The tokens of a text, and the byte at which each begins.
    pub(crate) fn pieces(&self, text: &str) -> Vec<Piece> {
        let encoding = self.encoding(text);
        self.names
            .pieces(encoding.get_ids(), encoding.get_offsets())
    }

    fn encoding(&self, text: &str) -> Encoding {
        self.tokenizer
            .encode(text, false)
            .expect("the only text-dependent failure is an unknown token outside the vocabulary, which loading has ruled out")
    }
}

/// A tokenized prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// [`ClipTokenizer::max_length`] ids: BOS, text, EOS, padding.
    pub ids: Vec<u32>,
    /// How many of them come before the padding, BOS and EOS included; at least 2.
    pub used: usize,
    /// What did not fit, if anything.
    pub cut: Option<Cut>,
}

/// The end of a prompt that did not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// How many tokens were dropped, at least 1.
    pub tokens: usize,
    /// The text they stand for, as it was typed: all from [`offset`](Self::offset) on. A character of which only some of
    /// the tokens were kept is part of it.
    pub text: String,
    /// The byte of the prompt at which it starts.
    pub offset: usize,
}

/// Why a tokenizer folder could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// There is no vocabulary in the folder.
    #[error("no tokenizer in {}: expected `tokenizer.json`, or `vocab.json` and `merges.txt`; missing is `{missing}`", printable(.dir.display()))]
    Missing {
        /// The folder.
        dir: PathBuf,
        /// The file that was looked for last.
        missing: &'static str,
    },
    /// A file is there but can't be read: it is no regular file, too large, empty, not UTF-8, or a
    /// web page or a pointer of Git LFS in the place of the file.
    #[error("{}: {}", printable(.path.display()), printable(.source))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file isn't JSON, or not of the form it should have.
    #[error("{}: {}{}", printable(.path.display()), .key.as_ref().map(|key| format!("`{}`: ", printable(key))).unwrap_or_default(), printable(.source))]
    Json {
        /// The file.
        path: PathBuf,
        /// The entry in it, if it is not the file as a whole.
        key: Option<String>,
        /// What was expected, and the line and column if the text is no JSON.
        source: serde_json::Error,
    },
    /// An id is too large to be one.
    #[error("{}: token \"{}\" has the id {id}, expected at most {}", printable(.path.display()), printable(.token), i32::MAX)]
    Id {
        /// The file.
        path: PathBuf,
        /// The token.
        token: String,
        /// Its id.
        id: u32,
    },
    /// A merge isn't two tokens.
    #[error("{}: merge {number} is \"{}\", expected two tokens with a space between", printable(.path.display()), printable(.text))]
    Merge {
        /// The file.
        path: PathBuf,
        /// Which merge, from 1, comment lines not counted.
        number: usize,
        /// What stands there.
        text: String,
    },
    /// A merge needs a token that the vocabulary lacks.
    #[error("{}: merge {number} needs the token \"{}\", which is not in the vocabulary", printable(.path.display()), printable(.token))]
    MergeToken {
        /// The file.
        path: PathBuf,
        /// Which merge, from 1, comment lines not counted.
        number: usize,
        /// The token: the left one, the right one, or both joined.
        token: String,
    },
    /// A special token has no id.
    #[error("{}: the {role} \"{}\" is not in the vocabulary", printable(.path.display()), printable(.token))]
    SpecialToken {
        /// The file that holds the vocabulary.
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
        /// What is possible.
        expected: &'static str,
    },
    /// The tokenizer library refuses what the files say.
    #[error("{}: {}", printable(.dir.display()), printable(.source))]
    Backend {
        /// The folder.
        dir: PathBuf,
        /// Its reason.
        source: crate::BoxError,
    },
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
    // Neither a space in front nor offsets less their white space; the pattern of GPT-2 splits on, as it does there.
    let bytes = ByteLevel::new(false, true, true);
    Ok(PreTokenizers::new(vec![split.into(), bytes.into()]))
}
