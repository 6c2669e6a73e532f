//! The logistic regressions, in f64 and from the drawn words instead of their text.

use std::collections::BTreeMap;
use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use super::{Case, near, sigmoid};
use crate::functions::lr_serving::{CLASSES, TOP, draw_class};
use crate::functions::lr_training::{
    FEATURES, FOLDS, LEARNING_RATE, draw_document, draw_weights, sentiment,
};
use crate::functions::vocabulary::{draw_rank, term};
use crate::random::Random;

/// The TF-IDF vector of the words of these ranks, and its length before it was made 1.
fn vector(ranks: &[usize]) -> (Vec<(usize, f64)>, f64) {
    let mut counts = BTreeMap::new();
    for &rank in ranks {
        *counts.entry(rank).or_insert(0u32) += 1;
    }
    let weigh = |(&rank, &count): (&usize, &u32)| {
        let documents = 1e6;
        let frequency = documents / (2.0 + rank as f64);
        let idf = ((1.0 + documents) / (1.0 + frequency)).ln() + 1.0;
        (rank, f64::from(count) * idf)
    };
    let weighed: Vec<(usize, f64)> = counts.iter().map(weigh).collect();
    let norm = weighed
        .iter()
        .map(|(_, value)| value.powi(2))
        .sum::<f64>()
        .sqrt();
    (
        weighed
            .into_iter()
            .map(|(rank, value)| (rank, value / norm))
            .collect(),
        norm,
    )
}

/// Checks a result of `lr_serving`.
pub(super) fn lr_serving(case: &Case<'_>) -> Result<(), String> {
    let mut random = Random::labelled("review", case.seed);
    let ranks: Vec<usize> = (0..case.sizes[0]).map(|_| draw_rank(&mut random)).collect();
    case.expect_integer(
        "review_bytes",
        ranks.iter().map(|&rank| term(rank).len() + 1).sum(),
    )?;
    let (vector, norm) = vector(&ranks);
    case.expect_integer("distinct_terms", vector.len())?;
    near("the vector's norm", case.number("norm")?, norm, norm * 1e-4)?;

    let probabilities: Vec<f64> = (0..CLASSES)
        .map(|class| {
            let weights = draw_class(class);
            sigmoid(
                vector
                    .iter()
                    .map(|&(rank, value)| value * f64::from(weights[rank]))
                    .sum(),
            )
        })
        .collect();
    let mut highest = probabilities.clone();
    highest.sort_by(|left, right| right.total_cmp(left));
    let classes = case.numbers("classes", TOP)?;
    for (place, found) in case.numbers("probabilities", TOP)?.into_iter().enumerate() {
        near(format!("probability {place}"), found, highest[place], 1e-4)?;
        let own = probabilities
            .get(classes[place] as usize)
            .copied()
            .unwrap_or(f64::NAN);
        near(
            format!("the probability of class {}", classes[place]),
            found,
            own,
            1e-4,
        )?;
    }
    Ok(())
}

/// Checks a result of `lr_training`.
pub(super) fn lr_training(case: &Case<'_>) -> Result<(), String> {
    let (count, epochs) = (case.sizes[0], case.sizes[1]);
    let documents: Vec<(Vec<(usize, f64)>, f64)> = (0..count)
        .map(|number| {
            let ranks = draw_document(number * FOLDS);
            let mood: f32 = ranks.iter().map(|&rank| sentiment(rank)).sum();
            (vector(&ranks).0, if mood > 0.0 { 1.0 } else { 0.0 })
        })
        .collect();
    let mut weights: Vec<f64> = draw_weights(case.seed).into_iter().map(f64::from).collect();
    let mut losses = Vec::new();
    let mut correct = 0usize;
    for _ in 0..epochs {
        let mut gradient = vec![0.0; weights.len()];
        let mut loss = 0.0;
        correct = 0;
        for (features, target) in &documents {
            let score: f64 = weights[FEATURES]
                + features
                    .iter()
                    .map(|&(rank, value)| weights[rank] * value)
                    .sum::<f64>();
            let probability = sigmoid(score);
            loss -= target * probability.ln() + (1.0 - target) * (1.0 - probability).ln();
            correct += usize::from((probability > 0.5) == (*target == 1.0));
            for &(rank, value) in features {
                gradient[rank] += (probability - target) * value;
            }
            gradient[FEATURES] += probability - target;
        }
        losses.push(loss / count as f64);
        for (weight, slope) in weights.iter_mut().zip(&gradient) {
            *weight -= f64::from(LEARNING_RATE) * slope / count as f64;
        }
    }
    let norm = weights
        .iter()
        .map(|weight| weight.powi(2))
        .sum::<f64>()
        .sqrt();
    case.expect_integer("documents", count)?;
    near(
        "the first loss",
        case.number("first_loss")?,
        losses[0],
        1e-4,
    )?;
    near(
        "the last loss",
        case.number("last_loss")?,
        losses[epochs - 1],
        1e-3,
    )?;
    near(
        "the weights' norm",
        case.number("weights_norm")?,
        norm,
        norm * 1e-3,
    )?;
    // A score next to 0 may fall to either side.
    let undecided = 1.0 + count as f64 / 500.0;
    near(
        "correct",
        case.number("correct")?,
        correct as f64,
        undecided,
    )
}
