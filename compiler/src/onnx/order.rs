//! Which nodes the outputs need, and an order in which to evaluate them: the file's, wherever it is one.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use onnx_protobuf::{GraphProto, NodeProto};

/// Which nodes are needed, and when.
pub(crate) struct Order<'a> {
    /// Names that a needed node or a wanted output uses.
    pub(crate) used: HashSet<&'a str>,
    pub(crate) order: Vec<usize>,
    /// The nodes of one cycle, if there is one.
    pub(crate) cyclic: Vec<usize>,
    /// Every needed node that no order of evaluation reaches.
    pub(crate) blocked: Vec<usize>,
}

impl<'a> Order<'a> {
    /// Plans the evaluation of `wanted` by `nodes`; `producers` says which node gives each name.
    pub(crate) fn new(
        nodes: &'a [NodeProto],
        producers: &HashMap<&'a str, usize>,
        wanted: &[&'a str],
    ) -> Order<'a> {
        let mut used: HashSet<&str> = HashSet::new();
        let mut live: HashMap<usize, Vec<&str>> = HashMap::new();
        let mut stack: Vec<&str> = wanted.to_vec();
        while let Some(name) = stack.pop() {
            if !used.insert(name) {
                continue;
            }
            if let Some(&index) = producers.get(name)
                && !live.contains_key(&index)
            {
                let mut needs = Vec::new();
                names_needed(&nodes[index], &mut needs);
                needs.sort_unstable();
                needs.dedup();
                stack.extend(&needs);
                live.insert(index, needs);
            }
        }
        let mut waiting: HashMap<usize, usize> = HashMap::new();
        let mut users: HashMap<usize, Vec<usize>> = HashMap::new();
        for (&index, needs) in &live {
            let before: HashSet<usize> = needs
                .iter()
                .filter_map(|n| producers.get(n).copied())
                .collect();
            waiting.insert(index, before.len());
            for producer in before {
                users.entry(producer).or_default().push(index);
            }
        }
        let mut ready: BinaryHeap<Reverse<usize>> = waiting
            .iter()
            .filter(|(_, n)| **n == 0)
            .map(|(&i, _)| Reverse(i))
            .collect();
        let mut order = Vec::with_capacity(live.len());
        while let Some(Reverse(index)) = ready.pop() {
            order.push(index);
            waiting.remove(&index);
            for user in users.get(&index).into_iter().flatten() {
                if let Some(n) = waiting.get_mut(user) {
                    *n -= 1;
                    if *n == 0 {
                        ready.push(Reverse(*user));
                    }
                }
            }
        }
        // What is left is on a cycle, or needs one: only the former is at fault.
        let mut blocked: Vec<usize> = waiting.keys().copied().collect();
        blocked.sort_unstable();
        let mut cyclic = Vec::new();
        if let Some(&first) = blocked.first() {
            let mut at = first;
            let mut seen = HashSet::new();
            while seen.insert(at) {
                cyclic.push(at);
                let blocking = |n: &&str| producers.get(*n).filter(|i| waiting.contains_key(*i));
                match live[&at].iter().find_map(blocking) {
                    Some(&next) => at = next,
                    None => break,
                }
            }
            let start = cyclic.iter().position(|&i| i == at).unwrap_or(0);
            cyclic.drain(..start);
            cyclic.sort_unstable();
        }
        Order {
            used,
            order,
            cyclic,
            blocked,
        }
    }
}

/// Names that a node uses, those included that its graphs use and do not define themselves.
fn names_needed<'a>(node: &'a NodeProto, out: &mut Vec<&'a str>) {
    let operands = node.input.iter().map(String::as_str);
    out.extend(operands.filter(|n| !n.is_empty()));
    for graph in node.attribute.iter().filter_map(|a| a.g.as_ref()) {
        let own = names_defined(graph);
        out.extend(names_used(graph).into_iter().filter(|n| !own.contains(n)));
    }
}

/// Names that the nodes and outputs of a graph use.
pub(crate) fn names_used(graph: &GraphProto) -> Vec<&str> {
    let mut used: Vec<&str> = graph.output.iter().map(|o| o.name.as_str()).collect();
    for node in &graph.node {
        names_needed(node, &mut used);
    }
    used
}

/// Names of the inputs, constants and results of a graph.
pub(crate) fn names_defined(graph: &GraphProto) -> HashSet<&str> {
    let inputs = graph.input.iter().map(|i| &i.name);
    let sparse = graph
        .sparse_initializer
        .iter()
        .filter_map(|t| t.values.as_ref());
    let constants = graph.initializer.iter().chain(sparse).map(|t| &t.name);
    let results = graph.node.iter().flat_map(|n| &n.output);
    let names = inputs.chain(constants).chain(results);
    names.map(String::as_str).collect()
}
