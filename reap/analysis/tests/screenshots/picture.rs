//! What is to be seen in a picture.

use std::collections::HashMap;
use std::io::Cursor;

pub(crate) type Colour = [u8; 3];

/// How far apart the parts of two colours may be that a reader takes for one.
const SAME: u8 = 12;

/// The pixels of a PNG.
pub(crate) struct Picture {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pixels: Vec<Colour>,
}

impl Picture {
    pub(crate) fn decode(png: &[u8]) -> Self {
        let mut decoder = png::Decoder::new(Cursor::new(png));
        decoder.set_transformations(png::Transformations::normalize_to_color8());
        let mut reader = decoder.read_info().unwrap();
        let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
        let frame = reader.next_frame(&mut bytes).unwrap();
        let samples = match frame.color_type {
            png::ColorType::Rgb => 3,
            png::ColorType::Rgba => 4,
            other => panic!("a picture in {other:?}"),
        };
        bytes.truncate(frame.buffer_size());
        let pixels: Vec<Colour> = bytes
            .chunks_exact(samples)
            .map(|pixel| [pixel[0], pixel[1], pixel[2]])
            .collect();
        assert_eq!(pixels.len(), frame.width as usize * frame.height as usize);
        Self {
            width: frame.width,
            height: frame.height,
            pixels,
        }
    }

    /// The colour of most pixels, by a sample.
    pub(crate) fn paper(&self) -> Colour {
        // A prime: no column is looked at again and again.
        const STEP: usize = 61;
        let mut counts: HashMap<Colour, usize> = HashMap::new();
        for pixel in self.pixels.iter().step_by(STEP) {
            *counts.entry(*pixel).or_default() += 1;
        }
        let most = counts.into_iter().max_by_key(|(_, count)| *count);
        most.expect("a picture has pixels").0
    }

    /// How many pixels of a row from column `from` to before `to` have another colour than `paper`.
    pub(crate) fn inked(&self, row: u32, from: u32, to: u32, paper: Colour) -> usize {
        let start = row as usize * self.width as usize;
        let pixels = &self.pixels[start + from as usize..start + to.min(self.width) as usize];
        let is_ink = |pixel: &&Colour| {
            **pixel != paper && {
                let apart = pixel.iter().zip(paper).map(|(a, b)| a.abs_diff(b));
                apart.max() > Some(SAME)
            }
        };
        pixels.iter().filter(is_ink).count()
    }
}

/// How light a colour is: from 0, black, to 255, white.
pub(crate) fn lightness(colour: Colour) -> u32 {
    colour.into_iter().map(u32::from).sum::<u32>() / 3
}
