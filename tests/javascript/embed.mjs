// Reads a bundle with transformers.js and prints, as JSON, what it computes.
//
//     node embed.mjs BUNDLE INPUTS.json
//
// INPUTS: {"texts": [...], "images": [paths], "pixels": [[numbers]], "size": S, "padding": true or "max_length"}

import { readFileSync } from "node:fs";
import { basename, dirname } from "node:path";
import {
  AutoProcessor, AutoTokenizer, CLIPModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection, RawImage,
  SiglipModel, Tensor, env,
} from "@huggingface/transformers";
import * as ort from "onnxruntime-node";

const [bundle, path] = process.argv.slice(2);
const inputs = JSON.parse(readFileSync(path, "utf8"));
env.allowRemoteModels = false;
env.localModelPath = `${dirname(bundle)}/`;
const name = basename(bundle);
const config = JSON.parse(readFileSync(`${bundle}/config.json`, "utf8"));

const tokenizer = await AutoTokenizer.from_pretrained(name);
const processor = await AutoProcessor.from_pretrained(name);
const text = await CLIPTextModelWithProjection.from_pretrained(name, { dtype: "fp32" });
const vision = await CLIPVisionModelWithProjection.from_pretrained(name, { dtype: "fp32" });
const Both = config.model_type === "siglip" ? SiglipModel : CLIPModel;
const both = await Both.from_pretrained(name, { dtype: "fp32" });

const images = await Promise.all(inputs.images.map((each) => RawImage.read(each)));
const { pixel_values } = await processor(images);
const size = inputs.size;
const exact = new Tensor("float32", Float32Array.from(inputs.pixels.flat()), [inputs.pixels.length, 3, size, size]);
const tokens = tokenizer(inputs.texts, { padding: inputs.padding, truncation: true });
const whole = await both({ ...tokens, pixel_values: exact });

// The file that prepares images itself, without transformers.js.
const raw = await ort.InferenceSession.create(`${bundle}/onnx/vision_model_with_preprocessing.onnx`);
const prepared_inside = [];
for (const each of images) {
  const { data, width, height } = each.rgb();
  const found = await raw.run({ image: new ort.Tensor("uint8", Uint8Array.from(data), [height, width, 3]) });
  prepared_inside.push(Array.from(found.image_embeds.data));
}

console.log(JSON.stringify({
  input_ids: tokens.input_ids.tolist().map((row) => row.map(Number)),
  text_embeds: (await text(tokens)).text_embeds.tolist(),
  image_embeds: (await vision({ pixel_values: exact })).image_embeds.tolist(),
  prepared_inside,
  own_pixels: pixel_values.tolist(),
  own_image_embeds: (await vision({ pixel_values })).image_embeds.tolist(),
  logits_per_image: whole.logits_per_image.tolist(),
}));
