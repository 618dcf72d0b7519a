// The small line of a card: the last readings over their time, without axes.

const WIDTH = 200;
const HEIGHT = 36;
const EDGE = 3;

export function path(points) {
  const numbers = points.filter((point) => point.value !== null);
  if (numbers.length < 2) return { line: "", area: "", low: null, high: null };
  let low = Infinity;
  let high = -Infinity;
  for (const { value } of numbers) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const begin = numbers[0].ms;
  const length = numbers.at(-1).ms - begin || 1;
  const height = high - low;
  const place = (point) => {
    const x = ((point.ms - begin) / length) * WIDTH;
    const y = height ? EDGE + (1 - (point.value - low) / height) * (HEIGHT - 2 * EDGE) : HEIGHT / 2;
    return `${x.toFixed(1)} ${y.toFixed(1)}`;
  };
  const line = `M${numbers.map(place).join("L")}`;
  return { line, area: `${line}V${HEIGHT}H0Z`, low, high };
}

export const BOX = `0 0 ${WIDTH} ${HEIGHT}`;
