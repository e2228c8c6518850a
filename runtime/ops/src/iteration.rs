//! What the loop of ONNX means: how often its body runs, what goes from one iteration to the next, and what is collected.
//!
//! What the body computes is the caller's: the evaluator has a graph for it, the runtime a plan.

use crate::{DType, Data, Tensor, TensorView};

/// What a loop cannot go on with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct IterationError(pub String);

/// What a loop is given beside its body.
#[derive(Clone, Debug)]
pub struct Iteration {
    /// Most iterations, if there is a limit; none are run if it is not positive.
    pub trips: Option<i64>,
    /// Whether to begin.
    pub condition: bool,
    /// What the first iteration is given.
    pub carried: Vec<Tensor>,
    /// Type and shape of what an iteration adds to each collection. Only a loop without iterations takes the shape from here.
    pub collected: Vec<(DType, Vec<usize>)>,
    /// Most bytes of all collections together.
    pub max_bytes: u64,
}

impl Iteration {
    /// Runs `body` with the number of the iteration, the condition and what is carried, while there are trips left and the
    /// condition holds. It gives the next condition, what is carried on, and an element of each collection.
    ///
    /// Gives what is carried at the end, then the collections, each with the iterations as its first dimension.
    ///
    /// # Errors
    /// What `body` says; and [`IterationError`] if a condition is no boolean, or what is collected changes its type or shape or takes
    /// more memory than it may.
    pub fn run<E: From<IterationError>>(
        self,
        mut body: impl FnMut(i64, bool, &[Tensor]) -> Result<Vec<Tensor>, E>,
    ) -> Result<Vec<Tensor>, E> {
        let Iteration {
            trips,
            mut condition,
            mut carried,
            collected,
            max_bytes,
        } = self;
        let n_carried = carried.len();
        let mut collections: Vec<Collection> = collected.into_iter().map(Collection::new).collect();
        let mut n = 0i64;
        let mut n_bytes = 0u64;
        while condition && trips.is_none_or(|trips| n < trips) {
            let mut results = body(n, condition, &carried)?.into_iter();
            let next = results.next();
            condition = next.as_ref().and_then(|t| truth(t.view())).ok_or_else(|| {
                IterationError("the condition of a loop is not one boolean".to_owned())
            })?;
            carried = results.by_ref().take(n_carried).collect();
            for (collection, tensor) in collections.iter_mut().zip(results) {
                n_bytes += (tensor.len() * tensor.dtype().size_bytes()) as u64;
                if max_bytes < n_bytes {
                    let message = format!("a loop collects more than {max_bytes} bytes");
                    return Err(IterationError(message).into());
                }
                collection.push(tensor)?;
            }
            n += 1;
        }
        carried.extend(collections.into_iter().map(Collection::into_tensor));
        Ok(carried)
    }
}

/// The element of a tensor that is one boolean.
pub fn truth(tensor: TensorView<'_>) -> Option<bool> {
    match tensor.as_slice::<bool>()? {
        [value] => Some(*value),
        _ => None,
    }
}

/// Tensors of one shape, behind each other.
struct Collection {
    shape: Vec<usize>,
    data: Data,
    n: usize,
}

impl Collection {
    fn new((dtype, shape): (DType, Vec<usize>)) -> Collection {
        Collection {
            shape,
            data: Data::zeros(dtype, 0),
            n: 0,
        }
    }

    fn push(&mut self, tensor: Tensor) -> Result<(), IterationError> {
        if self.n == 0 {
            self.shape = tensor.shape().to_vec();
        }
        if self.shape != tensor.shape() || !self.data.extend(tensor.view().data()) {
            return Err(IterationError(format!(
                "iterations of a loop give {}{:?} and {}{:?} for one result",
                self.data.dtype(),
                self.shape,
                tensor.dtype(),
                tensor.shape()
            )));
        }
        self.n += 1;
        Ok(())
    }

    fn into_tensor(self) -> Tensor {
        let shape = std::iter::once(self.n).chain(self.shape).collect();
        Tensor::try_new(shape, self.data).expect("as many elements as were added")
    }
}
