// Unpacks the browser's executable, its libraries and its fonts: node unpack.js FOLDER_OF_THE_PACKAGE

import { createReadStream, createWriteStream } from 'node:fs';
import { pipeline } from 'node:stream/promises';
import { createBrotliDecompress } from 'node:zlib';

for (const name of ['chromium', 'al2023.tar', 'fonts.tar']) {
  await pipeline(createReadStream(`${process.argv[2]}/bin/${name}.br`), createBrotliDecompress(), createWriteStream(name));
}
