//! `lr_serving`: classifies a review by TF-IDF and one logistic regression a class.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;

use super::checkpoint::sigmoid;
use super::vocabulary::{TERMS, draw_rank, inverse_document_frequency, term};
use super::{Workload, fields, rounded};
use crate::FunctionError;
use crate::parameters::{Parameters, SizeParameter};
use crate::random::Random;
use crate::runtime::NameTable;
use crate::serde_json::{Map, Value};

pub(crate) const SIZES: [SizeParameter; 1] = [SizeParameter {
    name: "words",
    description: "how many words the review has",
    default: 4000,
    minimum: 1,
    maximum: 20_000,
}];

/// How many classes the model tells apart.
pub(crate) const CLASSES: usize = 768;
/// How many of the most probable classes a result names.
pub(crate) const TOP: usize = 5;
/// How many documents of each term the index lists.
const POSTINGS: usize = 40;

struct Term {
    rank: u32,
    inverse_document_frequency: f32,
    #[expect(
        dead_code,
        reason = "belongs to the index that the vectoriser was saved with"
    )]
    postings: Box<[u32]>,
}

struct LrServing {
    vocabulary: NameTable<Term>,
    /// A row of weights for each class, by the rank of the term.
    classes: Vec<Box<[f32]>>,
}

/// Loads the vectoriser's vocabulary and the model's weights.
pub(crate) fn start() -> Result<Box<dyn Workload>, FunctionError> {
    let mut vocabulary = NameTable::with_capacity(TERMS);
    let mut random = Random::labelled("postings", 0);
    for rank in 0..TERMS {
        let entry = Term {
            rank: rank as u32,
            inverse_document_frequency: inverse_document_frequency(rank),
            postings: (0..POSTINGS)
                .map(|_| random.below(1_000_000) as u32)
                .collect(),
        };
        vocabulary.insert(Rc::from(term(rank)), entry);
    }
    let classes = (0..CLASSES).map(draw_class).collect();
    Ok(Box::new(LrServing {
        vocabulary,
        classes,
    }))
}

/// The weights of a class, by the rank of the term.
pub(crate) fn draw_class(class: usize) -> Box<[f32]> {
    let mut random = Random::labelled("lr class", class as u64);
    (0..TERMS).map(|_| random.symmetric(4.0)).collect()
}

impl Workload for LrServing {
    fn run(&mut self, parameters: &Parameters) -> Result<Map<String, Value>, FunctionError> {
        let mut random = Random::labelled("review", parameters.seed);
        let mut review = String::with_capacity(parameters.size(0) * 10);
        for _ in 0..parameters.size(0) {
            review.push_str(&term(draw_rank(&mut random)));
            review.push(' ');
        }

        // Term frequencies: occurrences of the same term stand together once sorted.
        let mut found: Vec<(u32, f32)> = review
            .split_ascii_whitespace()
            .filter_map(|word| self.vocabulary.get(word))
            .map(|term| (term.rank, term.inverse_document_frequency))
            .collect();
        found.sort_unstable_by_key(|&(rank, _)| rank);
        let mut vector: Vec<(u32, f32)> = Vec::with_capacity(found.len());
        for (rank, weight) in found {
            match vector.last_mut() {
                Some((last, sum)) if *last == rank => *sum += weight,
                _ => vector.push((rank, weight)),
            }
        }
        let norm = libm::sqrtf(vector.iter().map(|(_, value)| value * value).sum());
        for (_, value) in &mut vector {
            *value /= norm;
        }

        let mut scores: Vec<(usize, f32)> = self
            .classes
            .iter()
            .map(|weights| {
                vector
                    .iter()
                    .map(|&(rank, value)| weights[rank as usize] * value)
                    .sum::<f32>()
            })
            .map(sigmoid)
            .enumerate()
            .collect();
        scores.sort_unstable_by(|left, right| right.1.total_cmp(&left.1));
        scores.truncate(TOP);
        Ok(fields([
            ("review_bytes", Value::from(review.len())),
            ("distinct_terms", Value::from(vector.len())),
            ("norm", rounded(norm)),
            (
                "classes",
                scores
                    .iter()
                    .map(|&(class, _)| Value::from(class))
                    .collect(),
            ),
            (
                "probabilities",
                scores.iter().map(|&(_, score)| rounded(score)).collect(),
            ),
        ]))
    }
}
