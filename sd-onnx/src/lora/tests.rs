//! Tests of whole adapter files.
