//! `lr_training`: trains a logistic regression on the TF-IDF vectors of reviews by full-batch
//! gradient descent.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::checkpoint::sigmoid;
use super::vocabulary::{draw_rank, inverse_document_frequency, term};
use super::{Workload, fields, rounded};
use crate::FunctionError;
use crate::parameters::{Parameters, SizeParameter};
use crate::random::Random;
use crate::serde_json::{Map, Value};

pub(crate) const SIZES: [SizeParameter; 2] = [
    SizeParameter {
        name: "documents",
        description: "how many reviews of the training fold are used",
        default: FOLD_DOCUMENTS as u64,
        minimum: 10,
        maximum: FOLD_DOCUMENTS as u64,
    },
    SizeParameter {
        name: "epochs",
        description: "how many steps the descent takes",
        default: 8,
        minimum: 1,
        maximum: 100,
    },
];

/// How many reviews the corpus has.
pub(crate) const DOCUMENTS: usize = 15_000;
/// Training uses one fold of the corpus: every fifth review, as in five-fold cross-validation.
pub(crate) const FOLDS: usize = 5;
/// How many reviews a fold has.
pub(crate) const FOLD_DOCUMENTS: usize = DOCUMENTS / FOLDS;
/// How many weights the model has: reviews use only the most frequent terms.
pub(crate) const FEATURES: usize = 1024;
/// The step of the descent. Large, because a document's vector has unit length.
pub(crate) const LEARNING_RATE: f32 = 8.0;

struct Document {
    #[expect(
        dead_code,
        reason = "the corpus keeps the reviews that its vectors were made from"
    )]
    text: Box<str>,
    ranks: Box<[u32]>,
    values: Box<[f32]>,
    is_positive: bool,
}

struct LrTraining {
    documents: Vec<Document>,
}

/// The ranks of the words of review `number`, in their order.
pub(crate) fn draw_document(number: usize) -> Vec<usize> {
    let mut random = Random::labelled("corpus", number as u64);
    let length = 60 + random.index(120);
    (0..length).map(|_| draw_rank(&mut random)).collect()
}

/// What a word says of its review, which decides whether the review is positive.
pub(crate) fn sentiment(rank: usize) -> f32 {
    Random::labelled("sentiment", rank as u64).symmetric(1.0)
}

/// Loads the corpus: each review's text and its vector.
pub(crate) fn start() -> Result<Box<dyn Workload>, FunctionError> {
    let sentiments: Vec<f32> = (0..FEATURES).map(sentiment).collect();
    let documents = (0..DOCUMENTS)
        .map(|number| {
            let words = draw_document(number);
            let mut text = String::new();
            for &rank in &words {
                text.push_str(&term(rank));
                text.push(' ');
            }
            vectorise(text, words, &sentiments)
        })
        .collect();
    Ok(Box::new(LrTraining { documents }))
}

fn vectorise(text: String, words: Vec<usize>, sentiments: &[f32]) -> Document {
    let mood: f32 = words.iter().map(|&rank| sentiments[rank]).sum();
    let mut sorted = words;
    sorted.sort_unstable();
    let mut ranks: Vec<u32> = Vec::new();
    let mut values: Vec<f32> = Vec::new();
    for rank in sorted {
        if ranks.last() != Some(&(rank as u32)) {
            ranks.push(rank as u32);
            values.push(0.0);
        }
        if let Some(value) = values.last_mut() {
            *value += inverse_document_frequency(rank);
        }
    }
    let norm = libm::sqrtf(values.iter().map(|value| value * value).sum());
    for value in &mut values {
        *value /= norm;
    }
    Document {
        text: text.into_boxed_str(),
        ranks: ranks.into_boxed_slice(),
        values: values.into_boxed_slice(),
        is_positive: mood > 0.0,
    }
}

/// The weights that the descent begins with; the last one is the bias.
pub(crate) fn draw_weights(seed: u64) -> Vec<f32> {
    let mut random = Random::labelled("lr training", seed);
    (0..=FEATURES).map(|_| random.symmetric(0.05)).collect()
}

impl Workload for LrTraining {
    fn run(&mut self, parameters: &Parameters) -> Result<Map<String, Value>, FunctionError> {
        let count = parameters.size(0);
        let mut weights = draw_weights(parameters.seed);
        let mut first_loss = 0.0;
        let mut loss = 0.0;
        let mut correct = 0;
        let mut gradient = vec![0.0f32; weights.len()];
        for epoch in 0..parameters.size(1) {
            gradient.fill(0.0);
            // In f64: thousands of small terms are added.
            let mut loss_sum = 0.0f64;
            correct = 0;
            for document in self.documents.iter().step_by(FOLDS).take(count) {
                let features = || document.ranks.iter().zip(&document.values);
                let score = weights[FEATURES]
                    + features()
                        .map(|(&rank, value)| weights[rank as usize] * value)
                        .sum::<f32>();
                let target = if document.is_positive { 1.0 } else { 0.0 };
                let signed = if document.is_positive { -score } else { score };
                // ln(1 + e^x) without overflow.
                loss_sum += f64::from(signed.max(0.0) + libm::log1pf(libm::expf(-signed.abs())));
                correct += usize::from((score > 0.0) == document.is_positive);
                let error = sigmoid(score) - target;
                for (&rank, value) in features() {
                    gradient[rank as usize] += error * value;
                }
                gradient[FEATURES] += error;
            }
            loss = (loss_sum / count as f64) as f32;
            if epoch == 0 {
                first_loss = loss;
            }
            let step = LEARNING_RATE / count as f32;
            for (weight, slope) in weights.iter_mut().zip(&gradient) {
                *weight -= step * slope;
            }
        }
        let norm = libm::sqrtf(weights.iter().map(|weight| weight * weight).sum());
        Ok(fields([
            ("documents", Value::from(count)),
            ("first_loss", rounded(first_loss)),
            ("last_loss", rounded(loss)),
            ("correct", Value::from(correct)),
            ("weights_norm", rounded(norm)),
        ]))
    }
}
