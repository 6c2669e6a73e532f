//! `video_processing`: decodes frames of a clip, turns them grey and encodes them again.
//!
//! The clip is what an AVI file with Motion JPEG holds: chunks of video and of sound in turns.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use sha2::{Digest, Sha256};

use super::{Workload, fields, jpeg, rounded};
use crate::FunctionError;
use crate::digest::hex;
use crate::parameters::{Parameters, SizeParameter};
use crate::random::Random;
use crate::serde_json::{Map, Value};

pub(crate) const SIZES: [SizeParameter; 1] = [SizeParameter {
    name: "frames",
    description: "how many frames are processed, spread over the clip",
    default: 12,
    minimum: 1,
    maximum: FRAMES as u64 / FRAME_STRIDE as u64,
}];

/// The width of a frame in pixels.
pub(crate) const WIDTH: usize = 320;
/// The height of a frame in pixels.
pub(crate) const HEIGHT: usize = 240;
/// How many frames the clip has.
const FRAMES: usize = 192;
/// One frame in this many is processed.
pub(crate) const FRAME_STRIDE: usize = 8;
/// The sound of one frame: 48 kHz, 16 bits, two channels, 25 frames a second.
const SOUND_BYTES: usize = 48_000 * 2 * 2 / 25;
/// A result lists the means of this many frames at most.
pub(crate) const LISTED_FRAMES: usize = 16;

struct Chunk {
    frame: Box<[u8]>,
    #[expect(
        dead_code,
        reason = "belongs to the clip; the function works on its pictures"
    )]
    sound: Box<[u8]>,
}

struct VideoProcessing {
    clip: Vec<Chunk>,
}

/// Frame `number` of the clip: a disc that moves over a ramp, with grain.
pub(crate) fn draw_frame(number: usize) -> Vec<u8> {
    let mut random = Random::labelled("frame", number as u64);
    let mut pixels = Vec::with_capacity(WIDTH * HEIGHT * 3);
    let (disc_x, disc_y) = (number * 5 % WIDTH, HEIGHT / 2 + number % 60);
    for y in 0..HEIGHT {
        for x in 0..WIDTH {
            let distance = x.abs_diff(disc_x).pow(2) + y.abs_diff(disc_y).pow(2);
            let colour = if distance < 1600 {
                [230, 180, 40]
            } else {
                [x * 200 / WIDTH, y * 200 / HEIGHT, 100 + number % 100]
            };
            let grain = random.index(8);
            pixels.extend(colour.map(|value| (value + grain) as u8));
        }
    }
    pixels
}

/// The gain, in 256ths, and the offset that an invocation applies.
pub(crate) fn draw_exposure(seed: u64) -> (u32, u32) {
    let mut random = Random::labelled("exposure", seed);
    (200 + random.below(100) as u32, random.below(20) as u32)
}

/// Loads the clip.
pub(crate) fn start() -> Result<Box<dyn Workload>, FunctionError> {
    let mut clip = Vec::with_capacity(FRAMES);
    for number in 0..FRAMES {
        let frame = jpeg::encode(&draw_frame(number), WIDTH, HEIGHT, false)?.into_boxed_slice();
        let mut random = Random::labelled("sound", number as u64);
        let sound = (0..SOUND_BYTES).map(|_| random.bits() as u8).collect();
        clip.push(Chunk { frame, sound });
    }
    Ok(Box::new(VideoProcessing { clip }))
}

/// The luminance of each pixel (ITU-R BT.601 in 256ths) with gain and offset.
fn grey(pixels: &[u8], gain: u32, offset: u32) -> Vec<u8> {
    pixels
        .chunks_exact(3)
        .map(|pixel| {
            let [red, green, blue] = [pixel[0], pixel[1], pixel[2]].map(u32::from);
            let luminance = (77 * red + 150 * green + 29 * blue) >> 8;
            (((luminance * gain) >> 8) + offset).min(255) as u8
        })
        .collect()
}

impl Workload for VideoProcessing {
    fn run(&mut self, parameters: &Parameters) -> Result<Map<String, Value>, FunctionError> {
        let (gain, offset) = draw_exposure(parameters.seed);
        let mut hash = Sha256::new();
        let mut encoded_bytes = 0;
        let mut means = Vec::new();
        let mut motion_sum = 0u64;
        let mut previous: Option<Vec<u8>> = None;
        for chunk in self
            .clip
            .iter()
            .step_by(FRAME_STRIDE)
            .take(parameters.size(0))
        {
            let (pixels, width, height) = jpeg::decode(&chunk.frame)?;
            let frame = grey(&pixels, gain, offset);
            let jpeg = jpeg::encode(&frame, width, height, true)?;
            hash.update(&jpeg);
            encoded_bytes += jpeg.len();
            if means.len() < LISTED_FRAMES {
                let sum: u64 = frame.iter().map(|&value| u64::from(value)).sum();
                means.push(rounded(sum as f32 / frame.len() as f32));
            }
            if let Some(previous) = previous {
                motion_sum += previous
                    .iter()
                    .zip(&frame)
                    .map(|(before, now)| u64::from(before.abs_diff(*now)))
                    .sum::<u64>();
            }
            previous = Some(frame);
        }
        let pixels = (WIDTH * HEIGHT * parameters.size(0)) as f32;
        Ok(fields([
            ("frames", Value::from(parameters.size(0))),
            ("frame_means", Value::Array(means)),
            ("motion", rounded(motion_sum as f32 / pixels)),
            ("encoded_bytes", Value::from(encoded_bytes)),
            ("encoded_sha256", Value::from(hex(&hash.finalize()))),
        ]))
    }
}
