//! JPEG in and out: the crates zune-jpeg and jpeg-encoder.

use alloc::format;
use alloc::vec::Vec;
use jpeg_encoder::{ColorType, Encoder};
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use crate::FunctionError;

/// The quality that images are encoded with.
const QUALITY: u8 = 85;

/// Encodes 8-bit RGB (or, if `grey`, luminance) `pixels` of `width` and `height`.
pub(crate) fn encode(
    pixels: &[u8],
    width: usize,
    height: usize,
    grey: bool,
) -> Result<Vec<u8>, FunctionError> {
    let refused = |message| FunctionError::Data {
        operation: "encoding a JPEG",
        message,
    };
    let side = |side| u16::try_from(side).map_err(|_| refused(format!("a side is {side} pixels")));
    let (width, height) = (side(width)?, side(height)?);
    let colour = if grey {
        ColorType::Luma
    } else {
        ColorType::Rgb
    };
    // Room for most images, so that the buffer seldom moves while it grows.
    let mut jpeg = Vec::with_capacity(pixels.len() / 2 + 1024);
    Encoder::new(&mut jpeg, QUALITY)
        .encode(pixels, width, height, colour)
        .map_err(|error| refused(format!("{error}")))?;
    Ok(jpeg)
}

/// Decodes a JPEG to 8-bit RGB: pixels, width, height.
pub(crate) fn decode(jpeg: &[u8]) -> Result<(Vec<u8>, usize, usize), FunctionError> {
    let refused = |message| FunctionError::Data {
        operation: "decoding a JPEG",
        message,
    };
    let options = DecoderOptions::default().jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(jpeg), options);
    let pixels = decoder
        .decode()
        .map_err(|error| refused(format!("{error:?}")))?;
    let (width, height) = decoder
        .dimensions()
        .ok_or_else(|| refused("it has no size".into()))?;
    Ok((pixels, width, height))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_survives_within_the_loss_of_the_format() {
        let pixels: Vec<u8> = (0..48 * 32)
            .flat_map(|i| [(i % 48 * 4) as u8, 90, 40])
            .collect();
        let jpeg = encode(&pixels, 48, 32, false).unwrap();
        let (decoded, width, height) = decode(&jpeg).unwrap();
        assert_eq!((width, height), (48, 32));
        assert!(
            pixels
                .iter()
                .zip(&decoded)
                .all(|(a, b)| a.abs_diff(*b) < 16)
        );
    }

    #[test]
    fn what_is_no_jpeg_is_refused() {
        assert!(decode(b"no JPEG").is_err());
        assert!(decode(b"").is_err());
        assert!(encode(&[], 70_000, 1, true).is_err());
        assert!(encode(&[0; 10], 100, 100, true).is_err());
    }
}
