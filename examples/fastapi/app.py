"""Sign-up, activation and recovery in FastAPI with SQLAlchemy, with only what Mailroom needs.

    pip install fastapi python-multipart uvicorn 'mailroom-postgresql[sqlalchemy]'
    uvicorn app:app --port 8000

It has no passwords and no sessions; `examples/signup` is an application with both.
"""

import html
import os
from typing import Annotated

import psycopg
from fastapi import FastAPI, Form, Request
from fastapi.responses import HTMLResponse, JSONResponse
from sqlalchemy import text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

import mailroom
from mailroom.contrib.sqlalchemy import consume

KEYS = os.environ["MAILROOM_SECRET_KEY"]
app = FastAPI()
engine = create_async_engine(
    "postgresql+psycopg://",
    async_creator=lambda: psycopg.AsyncConnection.connect(os.environ["MAILROOM_DATABASE_URL"]),
)
sessions = async_sessionmaker(engine)
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
async def sign_up(email: Field, login: Field):
    async with sessions.begin() as session:
        await session.execute(
            text("INSERT INTO accounts (email, login) VALUES (:email, :login) ON CONFLICT DO NOTHING"),
            {"email": email, "login": login},
        )
    return {"message": "If that address is new, a mail is on its way."}


@app.get("/activate", response_class=HTMLResponse)
async def show_activation(token: str):
    mailroom.verify(token, "activation", keys=KEYS)
    hidden = f'<input type="hidden" name="token" value="{html.escape(token)}">'
    return f'<form method="post">{hidden}<button>Activate</button></form>'


@app.post("/activate")
async def activate(token: Field):
    async with sessions.begin() as session:
        used = await consume(session, token, "activation", keys=KEYS)
    return {"active": used.account}


@app.post("/forgot")
async def forgot(email: Field):
    async with sessions.begin() as session:
        await session.execute(
            text(
                "INSERT INTO tokens (action, account) SELECT 'password_recovery', id FROM accounts"
                " WHERE lower(email) = lower(:email) AND status = 'active'"
            ),
            {"email": email},
        )
    return {"message": "If there is such an account, a mail is on its way."}


@app.post("/recover")
async def recover(token: Field, code: Field):
    async with sessions.begin() as session:  # a wrong code is counted although this rolls back
        used = await consume(session, token, "password_recovery", keys=KEYS, code=code)
        # Here: store the hash of the new password of used.account, and end its sessions.
    return {"recovered": used.account}
