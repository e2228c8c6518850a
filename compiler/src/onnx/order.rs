//! Which nodes the outputs need, and an order in which to evaluate them: the file's, wherever it is one.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use onnx_protobuf::NodeProto;

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

/// Names that a node uses, those that its subgraphs capture included (and some that they define themselves, which no
/// node outside gives).
pub(crate) fn names_needed<'a>(node: &'a NodeProto, out: &mut Vec<&'a str>) {
    out.extend(
        node.input
            .iter()
            .map(String::as_str)
            .filter(|n| !n.is_empty()),
    );
    for graph in node.attribute.iter().filter_map(|a| a.g.as_ref()) {
        out.extend(graph.output.iter().map(|o| o.name.as_str()));
        for inner in &graph.node {
            names_needed(inner, out);
        }
    }
}
