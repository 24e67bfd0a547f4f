// ClickHouse as its HTTP interface takes queries: one in the address, and what it inserts in the body.
// node server.mjs PORT FOLDER LINES: what is inserted is added to the file LINES, too.
import { appendFileSync } from "node:fs";
import http from "node:http";
import { Session } from "chdb";

const [port, folder, lines] = process.argv.slice(2);
const session = new Session(folder);

http.createServer(async (request, response) => {
    const parts = [];
    for await (const part of request)
        parts.push(part);
    const body = Buffer.concat(parts).toString();
    const query = new URL(request.url, "http://localhost").searchParams.get("query") ?? "";
    try {
        const answer = session.query(query + "\n" + body, "JSONEachRow");
        if (body !== "")
            appendFileSync(lines, body);
        response.writeHead(200).end(answer);
    } catch (error) {
        response.writeHead(400).end(String(error.message ?? error));
    }
}).listen(Number(port), "127.0.0.1", () => console.log("listening"));
