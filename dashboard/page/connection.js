// The WebSocket: opened again whenever it ends, after longer and longer pauses, until the page is left.

const SILENT_MS = 12000; // the server says something every 5 s
const PAUSES_MS = [300, 1000, 2000, 4000, 8000, 10000];

export class Connection {
  #address;
  #on;
  #socket = null;
  #tries = 0;
  #retry = 0;
  #silence = 0;

  // `address()` is asked for anew each time. `on`: message(kind, data), open(), cut(sentence).
  constructor(address, on) {
    this.#address = address;
    this.#on = on;
    addEventListener("online", () => this.#socket || this.#open());
  }

  // Begin, or begin anew with another address.
  restart() {
    this.#tries = 0;
    this.#drop();
    this.#open();
  }

  #open() {
    clearTimeout(this.#retry);
    const socket = new WebSocket(this.#address());
    this.#socket = socket;
    let said = "";
    socket.onopen = () => this.#listen();
    socket.onmessage = (event) => {
      if (socket !== this.#socket) return;
      this.#listen();
      const { type, data } = JSON.parse(event.data);
      if (type === "error") said = data.message;
      else {
        if (this.#tries !== -1) this.#on.open();
        this.#tries = -1;
        this.#on.message(type, data);
      }
    };
    socket.onclose = (event) => socket === this.#socket && this.#ended(event.code, said);
  }

  #listen() {
    clearTimeout(this.#silence);
    this.#silence = setTimeout(() => {
      this.#drop();
      this.#ended(1006, "");
    }, SILENT_MS);
  }

  #drop() {
    clearTimeout(this.#silence);
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
  }

  async #ended(code, said) {
    clearTimeout(this.#silence);
    this.#socket = null;
    this.#tries = Math.min(this.#tries + 1, PAUSES_MS.length - 1);
    this.#on.cut(said);
    if (code === 1008) return; // asking the same again would be answered the same
    clearTimeout(this.#retry);
    this.#retry = setTimeout(() => this.#open(), PAUSES_MS[this.#tries] * (0.8 + 0.4 * Math.random()));
    if (this.#tries === 2 && (await mustLogIn())) location.assign("/login");
  }
}

// A WebSocket does not tell why it was refused.
async function mustLogIn() {
  try {
    return (await fetch("/", { redirect: "manual", cache: "no-store" })).type === "opaqueredirect";
  } catch {
    return false;
  }
}
