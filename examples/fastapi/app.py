"""Sign-up, activation and recovery in FastAPI, with only what Mailroom needs.

    pip install fastapi python-multipart uvicorn psycopg[binary]
    uvicorn app:app --port 8000

It has no passwords and no sessions; `examples/signup` is an application with both.
"""

import html
import os
from typing import Annotated

import psycopg
from fastapi import Depends, FastAPI, Form, Request
from fastapi.responses import HTMLResponse, JSONResponse

import mailroom

KEYS = os.environ["MAILROOM_SECRET_KEY"]
app = FastAPI()


async def connect():
    # With autocommit, `consume` commits by itself, so a wrong code stays counted.
    url = os.environ["MAILROOM_DATABASE_URL"]
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        yield connection


Connection = Annotated[psycopg.AsyncConnection, Depends(connect)]
Field = Annotated[str, Form()]


@app.exception_handler(mailroom.TokenError)
async def refused(request: Request, error: mailroom.TokenError):
    return JSONResponse({"error": error.reason, "message": str(error)}, 403)


@app.middleware("http")
async def keep_to_yourself(request: Request, call_next):
    response = await call_next(request)
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


@app.post("/sign-up")
async def sign_up(connection: Connection, email: Field, login: Field):
    await connection.execute(
        "INSERT INTO accounts (email, login) VALUES (%s, %s) ON CONFLICT DO NOTHING", [email, login]
    )
    return {"message": "If that address is new, a mail is on its way."}


@app.get("/activate", response_class=HTMLResponse)
async def show_activation(token: str):
    mailroom.verify(token, "activation", keys=KEYS)
    hidden = f'<input type="hidden" name="token" value="{html.escape(token)}">'
    return f'<form method="post">{hidden}<button>Activate</button></form>'


@app.post("/activate")
async def activate(connection: Connection, token: Field):
    used = await mailroom.consume(connection, token, "activation", keys=KEYS)
    return {"active": used.account}


@app.post("/forgot")
async def forgot(connection: Connection, email: Field):
    await connection.execute(
        "INSERT INTO tokens (action, account) SELECT 'password_recovery', id FROM accounts"
        " WHERE lower(email) = lower(%s) AND status = 'active'",
        [email],
    )
    return {"message": "If there is such an account, a mail is on its way."}


@app.post("/recover")
async def recover(connection: Connection, token: Field, code: Field):
    used = await mailroom.consume(connection, token, "password_recovery", keys=KEYS, code=code)
    # Here: store the hash of the new password of used.account, and end its sessions.
    return {"recovered": used.account}
