//! Inference against evaluation: for random operands of every operator, what is inferred must be what is computed.
//!
//! Some sizes are replaced by symbols, and small integer operands by known elements or by nothing, so that one set of
//! operands tests inference with all, some and no knowledge. A second test throws arbitrary attributes and types at
//! inference, which must not panic.

#[path = "infer/case.rs"]
mod case;
#[path = "infer/cases.rs"]
mod cases;
#[path = "infer/layers.rs"]
mod layers;
#[path = "infer/places.rs"]
mod places;
#[path = "infer/products.rs"]
mod products;
#[path = "infer/random.rs"]
mod random;

use std::collections::HashMap;
use std::sync::Arc;

use lancet_ir::infer::infer;
use lancet_ir::{Constant, Dim, Op, TensorType, ValueInfo};
use lancet_ops::{Attribute, AttributeType, Attributes, DType, Operator, Tensor, evaluate};
use proptest::prelude::*;

use case::Case;
use cases::case;
use random::Random;

/// The symbol that stands for a size; equal sizes have equal symbols.
fn symbol(size: usize) -> Dim {
    Dim::symbol(&format!("s{size}"))
}

/// What is told to inference of an operand.
fn told(r: &mut Random, tensor: &Tensor, case: &Case) -> ValueInfo {
    let constant = Constant {
        name: String::new(),
        tensor: Arc::new(tensor.clone()),
        literal: None,
    };
    let mut info = infer(&Op::Const(constant), &[], 1, &mut || unreachable!())
        .expect("a constant has a type")
        .swap_remove(0);
    match info.elements.clone() {
        // Nothing is known of computed values but their type.
        Some(_) if r.chance(20) => info.elements = None,
        Some(elements) => {
            if case.sizes {
                let replaced = elements.iter().map(|e| match e.as_fixed() {
                    Some(n @ 1..) if r.chance(40) => symbol(n as usize),
                    _ => e.clone(),
                });
                info.elements = Some(replaced.collect());
            }
            return info;
        }
        None => {}
    }
    if case.lengths && !tensor.dtype().is_float() {
        return info;
    }
    for (d, &n) in info.ty.shape.iter_mut().zip(tensor.shape()) {
        if 0 < n && r.chance(40) {
            *d = symbol(n);
        }
    }
    info
}

/// Values of symbols: those of sizes, and fresh ones as they are first met.
struct Bindings(HashMap<String, i64>);

impl Bindings {
    /// True if the expression has this value, where its symbols have values.
    fn fits(&mut self, d: &Dim, found: i64) -> bool {
        if let Some(s) = d.as_symbol().filter(|s| s.name().starts_with("fresh")) {
            return *self.0.entry(s.name().to_owned()).or_insert(found) == found;
        }
        let value = |name: &str| match name.strip_prefix('s') {
            Some(n) => n.parse().ok(),
            None => self.0.get(name).copied(),
        };
        d.eval(&value).is_none_or(|v| v == found)
    }
}

fn integers(t: &Tensor) -> Option<Vec<i64>> {
    match t.as_slice::<bool>() {
        Some(v) => Some(v.iter().map(|&b| i64::from(b)).collect()),
        None => (!t.dtype().is_float()).then(|| t.view().to_i64_vec()),
    }
}

/// Evaluates a case and compares what was inferred; false if evaluation declines it, an error where they differ.
fn check(r: &mut Random, op: Operator, case: &Case) -> Result<bool, String> {
    let views: Vec<_> = case
        .operands
        .iter()
        .map(|t| t.as_ref().map(Tensor::view))
        .collect();
    let Ok(results) = evaluate(op, &case.attributes, &views, case.n_results) else {
        return Ok(false);
    };
    let infos: Vec<Option<ValueInfo>> = case
        .operands
        .iter()
        .map(|t| t.as_ref().map(|t| told(r, t, case)))
        .collect();
    let refs: Vec<Option<&ValueInfo>> = infos.iter().map(Option::as_ref).collect();
    let mut n_fresh = 0;
    let mut fresh = || {
        n_fresh += 1;
        Dim::symbol(&format!("fresh{n_fresh}"))
    };
    let apply = Op::Apply(op, case.attributes.clone());
    let inferred = infer(&apply, &refs, case.n_results, &mut fresh)
        .map_err(|e| format!("{op} is evaluated on {infos:?}, inference says: {e}"))?;
    let mut bindings = Bindings(HashMap::new());
    for (i, t) in inferred.iter().zip(&results) {
        let shape_fits = i.ty.rank() == t.shape().len()
            && i.ty
                .shape
                .iter()
                .zip(t.shape())
                .all(|(d, &n)| bindings.fits(d, n as i64));
        let elements_fit = match (&i.elements, integers(t)) {
            (Some(e), Some(v)) => {
                e.len() == v.len() && e.iter().zip(v).all(|(d, v)| bindings.fits(d, v))
            }
            (Some(_), None) => false,
            (None, _) => true,
        };
        if i.ty.dtype != t.dtype() || !shape_fits || !elements_fit {
            let found = format!("{} {:?} {:?}", t.dtype(), t.shape(), integers(t));
            let attributes = &case.attributes;
            return Err(format!(
                "{op} {attributes:?} on {infos:?}\ninferred {i:?}\nfound {found}"
            ));
        }
    }
    Ok(inferred.len() == results.len())
}

#[test]
fn inferred_types_are_those_of_computed_results() {
    let mut wrong = Vec::new();
    for &op in Operator::ALL {
        let mut r = Random::new(op as u64);
        let mut n_evaluated = 0;
        for _ in 0..200 {
            let case = case(&mut r, op);
            match check(&mut r, op, &case) {
                Ok(evaluated) => n_evaluated += usize::from(evaluated),
                Err(e) => {
                    wrong.push(e);
                    break;
                }
            }
        }
        if n_evaluated < 150 {
            wrong.push(format!(
                "{op}: only {n_evaluated} of 200 cases are evaluated"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// Any attribute, mostly of the right type.
fn any_attribute(r: &mut Random, ty: AttributeType) -> Attribute {
    let edge = |r: &mut Random| {
        let edges = [
            i64::MIN,
            i64::MIN + 1,
            i64::MAX,
            i64::from(i32::MIN),
            0,
            1,
            -1,
        ];
        if r.chance(30) {
            *r.pick(&edges)
        } else {
            r.below(9) as i64 - 4
        }
    };
    let words = [
        "",
        "none",
        "f32",
        "i64",
        "bool",
        "SAME_UPPER",
        "VALID",
        "NOTSET",
        "LEFT",
        "bidirectional",
        "ij,jk->ik",
        "...i,i...",
        "i..j.->..",
        "é->é",
        "->",
        "a...b...->",
        "aab->ba",
        "constant",
        "add",
    ];
    match ty {
        AttributeType::Int => Attribute::Int(edge(r)),
        AttributeType::Float => Attribute::Float(r.below(5) as f32 - 2.0),
        AttributeType::Str => Attribute::Str((*r.pick(&words)).to_owned()),
        AttributeType::Ints => {
            let n = r.below(6);
            Attribute::Ints((0..n).map(|_| edge(r)).collect())
        }
        AttributeType::Floats => Attribute::Floats(vec![1.0]),
        AttributeType::Strs => Attribute::Strs(vec![(*r.pick(&words)).to_owned()]),
        AttributeType::Tensor => {
            let (dtype, n) = (*r.pick(&DType::ALL), r.below(3));
            Attribute::Tensor(Arc::new(Tensor::zeros(dtype, vec![n])))
        }
    }
}

/// Any value, hostile ones among them.
fn any_value(r: &mut Random) -> ValueInfo {
    let any_dim = |r: &mut Random| match r.below(8) {
        0 => Dim::fixed(*r.pick(&[i64::MAX, i64::MAX - 1, i64::MIN, -1, 0])),
        1 | 2 => symbol(r.below(4)),
        3 => symbol(r.below(4))
            .scale(r.below(5) as i64 - 2)
            .and_then(|d| d.add(&Dim::fixed(r.below(5) as i64 - 2)))
            .expect("small numbers"),
        _ => Dim::from(r.below(5)),
    };
    let rank = if r.chance(3) { 17 } else { r.below(5) };
    let shape: Vec<Dim> = (0..rank).map(|_| any_dim(r)).collect();
    let dtype = if r.chance(60) {
        *r.pick(&[DType::F32, DType::I64])
    } else {
        *r.pick(&DType::ALL)
    };
    let n = r.below(6);
    let elements = r
        .chance(60)
        .then(|| (0..n).map(|_| any_dim(r)).collect::<Vec<_>>().into());
    let shape = if elements.is_some() && r.chance(70) {
        vec![Dim::from(n)]
    } else {
        shape
    };
    ValueInfo {
        ty: TensorType::new(dtype, shape),
        elements,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hostile_operands_and_attributes_do_not_panic(seed: u64) {
        let mut r = Random::new(seed);
        for &op in Operator::ALL {
            let schema = op.schema();
            let mut attributes = Attributes::new();
            for a in schema.attributes {
                if r.chance(60) {
                    attributes.set(a.name, any_attribute(&mut r, a.ty));
                }
            }
            let (least, most) = schema.operands;
            let n = least + r.below(most.min(least + 3) - least + 1);
            let n_results = schema.results.0 + r.below(schema.results.1.min(4) - schema.results.0 + 1);
            let mut values: Vec<Option<ValueInfo>> = Vec::new();
            for _ in 0..n {
                // Operands that look alike get further.
                let like = values.last().cloned().flatten().filter(|_| r.chance(40));
                values.push(if r.chance(90) { like.or_else(|| Some(any_value(&mut r))) } else { None });
            }
            let refs: Vec<Option<&ValueInfo>> = values.iter().map(Option::as_ref).collect();
            let apply = Op::Apply(op, attributes);
            if let Ok(results) = infer(&apply, &refs, n_results, &mut || Dim::symbol("fresh")) {
                prop_assert_eq!(results.len(), n_results);
                for result in results {
                    prop_assert!(result.ty.rank() <= 16);
                    let known = result.elements.map_or(0, |e| e.len());
                    prop_assert!(known <= ValueInfo::MAX_ELEMENTS);
                }
            }
        }
    }
}
