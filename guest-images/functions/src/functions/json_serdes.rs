//! `json_serdes`: serialises a document of orders, parses it again, joins it with a catalogue of
//! products and serialises the invoice.

use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::{Workload, fields};
use crate::FunctionError;
use crate::digest::sha256_hex;
use crate::parameters::{Parameters, SizeParameter};
use crate::random::Random;
use crate::runtime::library::WORDS;
use crate::serde_json::{self, Map, Value, json};

pub(crate) const SIZES: [SizeParameter; 1] = [SizeParameter {
    name: "orders",
    description: "how many orders the document has",
    default: 600,
    minimum: 1,
    maximum: 5000,
}];

/// How many products the catalogue has.
const PRODUCTS: usize = 9000;
/// Order n is for product n times this: the assortment is spread over the catalogue.
const PRODUCT_STRIDE: usize = 13;

struct JsonSerdes {
    catalogue: Vec<Value>,
}

/// A product of the catalogue.
pub(crate) struct Product {
    pub(crate) name: String,
    pub(crate) price_cents: u64,
    pub(crate) tax_percent: u64,
}

/// An order of the document.
pub(crate) struct Order {
    pub(crate) product: usize,
    pub(crate) quantity: u64,
    pub(crate) note: &'static str,
}

/// Product `number`, and what the rest of its entry is drawn from.
pub(crate) fn draw_product(number: usize) -> (Product, Random) {
    let mut random = Random::labelled("product", number as u64);
    let product = Product {
        name: format!("{} \"{number}\"", WORDS[random.index(WORDS.len())]),
        price_cents: 1 + random.below(100_000),
        tax_percent: [0, 7, 19][random.index(3)],
    };
    (product, random)
}

/// The next order, which is number `number` of the document.
pub(crate) fn draw_order(random: &mut Random, number: usize) -> Order {
    Order {
        product: number * PRODUCT_STRIDE % PRODUCTS,
        quantity: 1 + random.below(20),
        note: WORDS[random.index(WORDS.len())],
    }
}

/// Parses the catalogue.
pub(crate) fn start() -> Result<Box<dyn Workload>, FunctionError> {
    let mut catalogue = Vec::with_capacity(PRODUCTS);
    for number in 0..PRODUCTS {
        let (product, mut random) = draw_product(number);
        let mut word = || WORDS[random.index(WORDS.len())];
        let description = [(); 6].map(|()| word()).join(" ");
        let text = json!({
            "attributes": {"colour": word(), "material": word(), "series": word()},
            "description": description,
            "name": product.name,
            "price_cents": product.price_cents,
            "tags": [word(), word(), word()],
            "tax_percent": product.tax_percent,
        })
        .to_string();
        catalogue.push(parse("parsing the catalogue", &text)?);
    }
    Ok(Box::new(JsonSerdes { catalogue }))
}

fn parse(operation: &'static str, text: &str) -> Result<Value, FunctionError> {
    serde_json::from_str(text).map_err(|error| FunctionError::Data {
        operation,
        message: error.to_string(),
    })
}

impl JsonSerdes {
    fn invoice_line(&self, order: &Value) -> Result<(Value, u64), FunctionError> {
        let join = || {
            let quantity = order["quantity"].as_u64()?;
            let product = self.catalogue.get(order["product"].as_u64()? as usize)?;
            let net = quantity * product["price_cents"].as_u64()?;
            let gross = net + net * product["tax_percent"].as_u64()? / 100;
            let line = json!({
                "gross_cents": gross,
                "name": product["name"].as_str()?,
                "net_cents": net,
                "note": order["note"].as_str()?,
            });
            Some((line, gross))
        };
        join().ok_or_else(|| FunctionError::Data {
            operation: "joining an order with the catalogue",
            message: format!("order {order} does not fit"),
        })
    }
}

impl Workload for JsonSerdes {
    fn run(&mut self, parameters: &Parameters) -> Result<Map<String, Value>, FunctionError> {
        let mut random = Random::labelled("orders", parameters.seed);
        let orders: Vec<Value> = (0..parameters.size(0))
            .map(|number| {
                let order = draw_order(&mut random, number);
                json!({
                    "note": order.note,
                    "product": order.product,
                    "quantity": order.quantity,
                })
            })
            .collect();
        let document = json!({ "orders": orders }).to_string();

        let parsed = parse("parsing the orders", &document)?;
        let mut lines = Vec::with_capacity(parameters.size(0));
        let mut total_cents = 0;
        for order in parsed["orders"].as_array().into_iter().flatten() {
            let (line, gross_cents) = self.invoice_line(order)?;
            total_cents += gross_cents;
            lines.push(line);
        }
        let mut invoice = Map::new();
        invoice.insert("lines".to_owned(), Value::Array(lines));
        invoice.insert("total_cents".to_owned(), Value::from(total_cents));
        let invoice = Value::Object(invoice).to_string();
        Ok(fields([
            ("document_bytes", Value::from(document.len())),
            (
                "document_sha256",
                Value::from(sha256_hex(document.as_bytes())),
            ),
            ("invoice_bytes", Value::from(invoice.len())),
            (
                "invoice_sha256",
                Value::from(sha256_hex(invoice.as_bytes())),
            ),
            ("total_cents", Value::from(total_cents)),
        ]))
    }
}
