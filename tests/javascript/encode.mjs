// Encodes pages in Node with transformers.js, for tests/conversion/export/test_transformers_js.py:
//
//     node encode.mjs NODE_MODULES MODEL OUTPUT PIXELS PAGE ...
//
// PIXELS is a file of float32 values, which the model gets as they are; each PAGE is an image file. Writes OUTPUT.json, with
// the shape of each output, and beside it the values of each. Nothing is downloaded.
import { createRequire } from "node:module";
import { basename, dirname, join, resolve } from "node:path";
import { readFileSync, writeFileSync } from "node:fs";

const [nodeModules, model, output, pixels, ...pages] = process.argv.slice(2);
const { AutoImageProcessor, AutoModel, RawImage, Tensor, env } = createRequire(join(resolve(nodeModules), "any.js"))(
  "@huggingface/transformers",
);
env.allowRemoteModels = false;
env.useFSCache = false;
env.localModelPath = dirname(resolve(model));

const shapes = {};
function keep(prefix, tensors) {
  for (const [name, { dims, data }] of Object.entries(tensors)) {
    shapes[`${prefix}.${name}`] = dims;
    writeFileSync(`${output}.${prefix}.${name}`, Buffer.from(data.buffer, data.byteOffset, data.byteLength));
  }
}

const encoder = await AutoModel.from_pretrained(basename(model));
const side = encoder.config.layout.image_size;
const values = new Float32Array(new Uint8Array(readFileSync(pixels)).buffer);
const batch = new Tensor("float32", values, [values.length / (3 * side * side), 3, side, side]);
keep("pixels", { pixel_values: batch, ...(await encoder({ pixel_values: batch })) });

const processor = await AutoImageProcessor.from_pretrained(basename(model));
for (const [index, page] of pages.entries()) {
  const { pixel_values } = await processor(await RawImage.read(page));
  keep(index, { pixel_values, ...(await encoder({ pixel_values })) });
}
writeFileSync(`${output}.json`, JSON.stringify(shapes));
