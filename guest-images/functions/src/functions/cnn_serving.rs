//! `cnn_serving`: classifies images with a convolutional network.
//!
//! Three blocks of a 3x3 convolution (padded with zeros), a rectifier and 2x2 maximum pooling,
//! then two dense layers and a softmax over 100 classes.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use super::checkpoint::{Layer, softmax};
use super::{Workload, fields, rounded};
use crate::FunctionError;
use crate::parameters::{Parameters, SizeParameter};
use crate::random::Random;
use crate::serde_json::{Map, Value};
use alloc::string::String;

pub(crate) const SIZES: [SizeParameter; 1] = [SizeParameter {
    name: "images",
    description: "how many images are classified",
    default: 1,
    minimum: 1,
    maximum: 16,
}];

/// Width and height of an image, in pixels.
pub(crate) const SIDE: usize = 32;
/// Name, inputs and outputs of each convolution, in channels.
pub(crate) const CONVOLUTIONS: [(&str, usize, usize); 3] = [
    ("cnn conv1", 3, 32),
    ("cnn conv2", 32, 64),
    ("cnn conv3", 64, 128),
];
/// Name, inputs and outputs of each dense layer.
pub(crate) const DENSE: [(&str, usize, usize); 2] =
    [("cnn dense1", 2048, 640), ("cnn dense2", 640, 100)];

struct CnnServing {
    convolutions: Vec<Layer>,
    dense: Vec<Layer>,
}

/// Loads the network's checkpoint.
pub(crate) fn start() -> Result<Box<dyn Workload>, FunctionError> {
    let convolutions = CONVOLUTIONS
        .iter()
        .map(|&(name, inputs, outputs)| Layer::load(name, outputs, inputs * 9))
        .collect();
    let dense = DENSE
        .iter()
        .map(|&(name, inputs, outputs)| Layer::load(name, outputs, inputs))
        .collect();
    Ok(Box::new(CnnServing {
        convolutions,
        dense,
    }))
}

/// The next image: three planes (red, green, blue) of waves and grain, from 0 to about 1.
pub(crate) fn draw_image(random: &mut Random) -> Vec<f32> {
    let mut image = Vec::with_capacity(3 * SIDE * SIDE);
    for _ in 0..3 {
        let (across, down) = (random.unit(), random.unit());
        for y in 0..SIDE {
            for x in 0..SIDE {
                let ramp = (across * x as f32 + down * y as f32) / SIDE as f32;
                image.push(ramp * 0.5 + random.unit() * 0.25);
            }
        }
    }
    image
}

/// Convolves square planes of `side` and applies the rectifier.
fn convolve(layer: &Layer, planes: &[f32], side: usize) -> Vec<f32> {
    let area = side * side;
    let padded_side = side + 2;
    let channels = planes.len() / area;
    // A border of zeros lets the inner loop run over whole rows.
    let mut padded = vec![0.0f32; channels * padded_side * padded_side];
    for (source, target) in planes
        .chunks_exact(area)
        .zip(padded.chunks_exact_mut(padded_side * padded_side))
    {
        for (y, row) in source.chunks_exact(side).enumerate() {
            let start = (y + 1) * padded_side + 1;
            target[start..start + side].copy_from_slice(row);
        }
    }
    let mut outputs = vec![0.0f32; layer.outputs() * area];
    for (output, plane) in outputs.chunks_exact_mut(area).enumerate() {
        let (weights, bias) = layer.weights(output);
        plane.fill(bias);
        for (kernel, source) in weights
            .chunks_exact(9)
            .zip(padded.chunks_exact(padded_side * padded_side))
        {
            for (y, row) in plane.chunks_exact_mut(side).enumerate() {
                for (tap, &weight) in kernel.iter().enumerate() {
                    let start = (y + tap / 3) * padded_side + tap % 3;
                    for (sum, &pixel) in row.iter_mut().zip(&source[start..start + side]) {
                        *sum += weight * pixel;
                    }
                }
            }
        }
        for value in plane {
            *value = value.max(0.0);
        }
    }
    outputs
}

/// The maximum of each 2x2 block of planes of `side`.
fn pool(planes: &[f32], side: usize) -> Vec<f32> {
    let half = side / 2;
    let mut pooled = Vec::with_capacity(planes.len() / 4);
    for plane in planes.chunks_exact(side * side) {
        for y in 0..half {
            let upper = &plane[2 * y * side..][..side];
            let lower = &plane[(2 * y + 1) * side..][..side];
            for x in 0..half {
                let left = upper[2 * x].max(lower[2 * x]);
                pooled.push(left.max(upper[2 * x + 1]).max(lower[2 * x + 1]));
            }
        }
    }
    pooled
}

impl CnnServing {
    fn classify(&self, image: Vec<f32>) -> Vec<f32> {
        let mut side = SIDE;
        let mut planes = image;
        for layer in &self.convolutions {
            planes = pool(&convolve(layer, &planes, side), side);
            side /= 2;
        }
        let last = self.dense.len() - 1;
        for (index, layer) in self.dense.iter().enumerate() {
            planes = (0..layer.outputs())
                .map(|output| {
                    let sum = layer.apply(output, &planes);
                    if index == last { sum } else { sum.max(0.0) }
                })
                .collect();
        }
        planes
    }
}

impl Workload for CnnServing {
    fn run(&mut self, parameters: &Parameters) -> Result<Map<String, Value>, FunctionError> {
        let mut random = Random::labelled("cnn images", parameters.seed);
        let mut classes = Vec::new();
        let mut probabilities = Vec::new();
        let mut score_norms = Vec::new();
        for _ in 0..parameters.size(0) {
            let mut scores = self.classify(draw_image(&mut random));
            let square: f32 = scores.iter().map(|score| score * score).sum();
            score_norms.push(rounded(libm::sqrtf(square)));
            softmax(&mut scores);
            let mut best = 0;
            for (class, score) in scores.iter().enumerate() {
                if *score > scores[best] {
                    best = class;
                }
            }
            classes.push(Value::from(best));
            probabilities.push(rounded(scores[best]));
        }
        Ok(fields([
            ("classes", Value::Array(classes)),
            ("probabilities", Value::Array(probabilities)),
            ("score_norms", Value::Array(score_norms)),
        ]))
    }
}
