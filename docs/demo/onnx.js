"use strict";
// Runs an ONNX model that `rtm export` wrote for a model with the MLP mixer: float32, one sample, one core.

/** The fields of a protobuf message: a list of values per field number; numbers, or the bytes of what is nested. */
function message(bytes) {
  const found = {};
  let at = 0;
  const varint = () => {
    let value = 0n, shift = 0n, byte;
    do value |= BigInt((byte = bytes[at++]) & 127) << shift; while (shift += 7n, byte > 127);
    return Number(BigInt.asIntN(64, value));
  };
  while (at < bytes.length) {
    const key = varint(), kind = key & 7;
    const size = kind === 2 ? varint() : kind === 5 ? 4 : 8;
    const value = kind === 0 ? varint() : bytes.subarray(at, at += size);
    (found[key >> 3] ??= []).push(value);
  }
  return found;
}

const text = (bytes) => new TextDecoder().decode(bytes);
const count = (shape) => shape.reduce((n, size) => n * size, 1);

/** WebAssembly of `tile(a, lda, b, c, ldc, k)`: C [4, 8] = A [4, k] B [k, 8], addresses and row strides in bytes. */
function compileTile(memory) {
  const simd = (op, ...more) => [0xfd, ...(op < 128 ? [op] : [op & 127 | 128, 1]), ...more];
  const get = (local) => [0x20, local], set = (local) => [0x21, local];
  const [b, c, ldc, k, row, sum, load] = [2, 3, 4, 5, 6, 10, 18]; // locals: 4 rows of A, 8 sums, 2 of B and 1 of A
  const advance = (local, by) => [...get(local), 0x41, by, 0x6a, ...set(local)];
  const code = [...get(0), ...set(row)];
  for (let r = 1; r < 4; r++) code.push(...get(row + r - 1), ...get(1), 0x6a, ...set(row + r));
  code.push(0x03, 0x40);
  for (let half = 0; half < 2; half++) code.push(...get(b), ...simd(0, 2, 16 * half), ...set(load + half));
  for (let r = 0; r < 4; r++) {
    code.push(...get(row + r), ...simd(9, 2, 0), ...set(load + 2), ...advance(row + r, 4));
    for (let half = 0; half < 2; half++) {
      const own = sum + 2 * r + half;
      code.push(...get(own), ...get(load + 2), ...get(load + half), ...simd(0xe6), ...simd(0xe4), ...set(own));
    }
  }
  code.push(...advance(b, 32), ...get(k), 0x41, 1, 0x6b, 0x22, k, 0x0d, 0, 0x0b);
  for (let r = 0; r < 4; r++) {
    for (let half = 0; half < 2; half++) code.push(...get(c), ...get(sum + 2 * r + half), ...simd(11, 2, 16 * half));
    code.push(...get(c), ...get(ldc), 0x6a, ...set(c));
  }
  const leb = (n) => n < 128 ? [n] : [n & 127 | 128, ...leb(n >> 7)];
  const sized = (bytes) => [...leb(bytes.length), ...bytes];
  const body = [2, 4, 0x7f, 11, 0x7b, ...code, 0x0b];
  const module = new WebAssembly.Module(new Uint8Array([
    0, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
    1, ...sized([1, 0x60, 6, ...Array(6).fill(0x7f), 0]),
    2, ...sized([1, 1, 0x6d, 1, 0x6d, 2, 0, 1]),
    3, ...sized([1, 0]),
    7, ...sized([1, 1, 0x74, 0, 0]),
    10, ...sized([1, ...sized(body)]),
  ]));
  return new WebAssembly.Instance(module, {m: {m: memory}}).exports.t;
}

class Model {
  constructor(bytes) {
    const model = message(bytes), graph = message(model[7][0]);
    const props = (model[14] ?? []).map(message).map((entry) => [text(entry[1][0]), text(entry[2][0])]);
    this.config = JSON.parse(Object.fromEntries(props).rtm_kernels);
    this.memory = new WebAssembly.Memory({initial: 1024});
    this.tile = compileTile(this.memory);
    this.end = 0;
    this.unused = {};
    this.constants = {};
    for (const entry of (graph[5] ?? []).map(message)) this.constants[text(entry[8][0])] = this.constant(entry);
    const nodes = (graph[1] ?? []).map(message).map((node) => ({
      op: text(node[4][0]), inputs: (node[1] ?? []).map(text), outputs: node[2].map(text),
    }));
    const wanted = new Set((graph[12] ?? []).map((value) => text(message(value)[1][0])).filter((name) => name !== "q"));
    this.outputs = [...wanted];
    this.nodes = [];
    for (const node of nodes.reverse()) { // what no output needs is left out
      if (!node.outputs.some((name) => wanted.has(name))) continue;
      node.inputs.forEach((name) => wanted.add(name));
      this.nodes.unshift(node);
    }
    this.nodes = this.nodes.filter((node) => { // what depends on constants alone is computed once
      if (node.inputs.some((name) => !(name in this.constants))) return true;
      this.apply(node, this.constants);
      return false;
    });
    this.lastUse = new Map();
    this.nodes.forEach((node, i) => node.inputs.forEach((name) => this.lastUse.set(name, i)));
  }

  constant(entry) {
    const shape = entry[1] ?? [], raw = entry[9][0].slice().buffer, whole = entry[2][0] === 7;
    if (whole) return {shape, data: Array.from(new BigInt64Array(raw), Number)};
    const made = this.float(shape);
    made.data.set(new Float32Array(raw));
    return made;
  }

  /** A tensor in the memory of the module, whose numbers are not set. */
  float(shape) {
    const size = count(shape), free = (this.unused[size] ??= []);
    if (free.length) return {shape, data: free.pop()};
    const data = new Float32Array(this.memory.buffer, this.end, size);
    this.end += 16 * Math.ceil(size / 4);
    return {shape, data};
  }

  /** The outputs of the model by name. `pause` is awaited between operators, so that the page stays responsive. */
  async run(given, pause) {
    const values = {...this.constants, ...given};
    for (const [i, node] of this.nodes.entries()) {
      await pause?.();
      this.apply(node, values);
      for (const name of new Set(node.inputs)) {
        if (name in this.constants || name in given || this.lastUse.get(name) !== i) continue;
        if (!this.outputs.includes(name)) this.unused[values[name].data.length].push(values[name].data);
      }
    }
    const found = {};
    for (const name of this.outputs) {
      const {shape, data} = values[name];
      found[name] = {shape, data: data.slice()};
      this.unused[data.length].push(data);
    }
    return found;
  }

  apply(node, values) {
    if (!(node.op in OPERATORS)) throw new Error(`this page does not run the operator ${node.op}`);
    const made = OPERATORS[node.op](this, node.inputs.map((name) => values[name]));
    [made].flat().forEach((value, i) => values[node.outputs[i]] = value);
  }

  /** A [.., k] times B [k, n], B constant: packed once into panels of eight columns, of which the last two overlap. */
  matmul(a, b) {
    const [k, n] = b.shape, m = a.data.length / k, out = this.float([...a.shape.slice(0, -1), n]);
    if (b.shape.length !== 2 || m < 4 || n < 8) throw new Error(`this page does not multiply ${a.shape} by ${b.shape}`);
    b.panels ??= Array.from({length: Math.ceil(n / 8)}, (_, panel) => {
      const start = Math.min(8 * panel, n - 8), packed = this.float([k, 8]).data;
      for (let i = 0; i < packed.length; i++) packed[i] = b.data[(i >> 3) * n + start + (i & 7)];
      return {start, address: packed.byteOffset};
    });
    for (const {start, address} of b.panels) {
      for (let i = 0; i < m; i += 4) {
        const row = Math.min(i, m - 4);
        const from = a.data.byteOffset + 4 * row * k, to = out.data.byteOffset + 4 * (row * n + start);
        this.tile(from, 4 * k, address, to, 4 * n, k);
      }
    }
    return out;
  }
}

/** `loop(a, b, out, rows, n, byRow, byColumn)` over A [.., n] and a B of its shape, of one column, or of one number. */
function pairwise(loop) {
  return (model, [a, b]) => {
    if (a.data.length < b.data.length) [a, b] = [b, a];
    const n = a.shape.at(-1) ?? 1, rows = a.data.length / n, out = model.float(a.shape), size = b.data.length;
    if (![a.data.length, rows, 1].includes(size)) throw new Error(`shapes ${a.shape} and ${b.shape} do not fit`);
    const same = size === a.data.length;
    loop(a.data, b.data, out.data, rows, n, same ? n : Number(size > 1), Number(same));
    return out;
  };
}

const each = (f) => (model, [a]) => {
  const out = model.float(a.shape);
  for (let i = 0; i < a.data.length; i++) out.data[i] = f(a.data[i]);
  return out;
};

const OPERATORS = {
  Add: pairwise((a, b, out, rows, n, byRow, byColumn) => {
    for (let r = 0, i = 0; r < rows; r++) for (let j = 0; j < n; j++, i++) out[i] = a[i] + b[r * byRow + j * byColumn];
  }),
  Mul: pairwise((a, b, out, rows, n, byRow, byColumn) => {
    for (let r = 0, i = 0; r < rows; r++) for (let j = 0; j < n; j++, i++) out[i] = a[i] * b[r * byRow + j * byColumn];
  }),
  Sigmoid: each((x) => 1 / (1 + Math.exp(-x))),
  Sqrt: each(Math.sqrt),
  Reciprocal: each((x) => 1 / x),
  Pow(model, [a, power]) {
    if (power.data[0] !== 2) throw new Error("this page knows squares only");
    return OPERATORS.Mul(model, [a, a]);
  },
  ReduceMean(model, [a, axes]) {
    const n = a.shape.at(-1), out = model.float([...a.shape.slice(0, -1), 1]);
    if (axes.data[0] !== -1) throw new Error("this page takes means over the last axis only");
    for (let r = 0, i = 0; r < out.data.length; r++) {
      let sum = 0;
      for (let c = 0; c < n; c++) sum += a.data[i++];
      out.data[r] = sum / n;
    }
    return out;
  },
  Transpose(model, [a]) { // of the last two axes
    const [rows, n] = a.shape.slice(-2), out = model.float([...a.shape.slice(0, -2), n, rows]);
    for (let r = 0, i = 0; r < rows; r++) for (let c = 0; c < n; c++) out.data[c * rows + r] = a.data[i++];
    return out;
  },
  Split(model, [a]) { // in halves, along the last axis
    const n = a.shape.at(-1) / 2, rows = a.data.length / n / 2;
    const halves = [0, 1].map(() => model.float([...a.shape.slice(0, -1), n]));
    halves.forEach((half, h) => {
      for (let r = 0; r < rows; r++) half.data.set(a.data.subarray((2 * r + h) * n, (2 * r + h + 1) * n), r * n);
    });
    return halves;
  },
  Gather(model, [table, ids]) {
    const n = table.shape.at(-1), out = model.float([...ids.shape, n]);
    ids.data.forEach((id, i) => out.data.set(table.data.subarray(id * n, (id + 1) * n), i * n));
    return out;
  },
  MatMul: (model, [a, b]) => model.matmul(a, b),
  Reshape(model, [a]) { // of what says whether the sample starts
    const out = model.float([1, 1, 1]);
    out.data.set(a.data);
    return out;
  },
  Where: (model, [condition, a, b]) => each((x) => x)(model, [condition.data[0] ? a : b]),
};
