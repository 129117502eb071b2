"""Envelope senders as mailing systems, lists and people have them, two and two: those that are one
triplet, and those that are not.
"""

# Two messages of one sender, or a tagged sender and the plain one.
ONE = [
    (
        "0102016efd924cb8-4e48dd8b-0599-4a87-8084-b51c410b859b-000000@eu-west-1.amazonses.example",
        "0102016efd948e3c-ed35c055-1123-473d-bcce-03a7adda94e6-000000@eu-west-1.amazonses.example",
    ),
    (
        "bounce-md_30112948.55a02731.v1-163e4a0faf244a2da6b0121cc7af1fe9@mandrillapp.example",
        "bounce-md_30112948.542acdc7.v1-f5861d776ab64c88a828bacb6a34ecca@mandrillapp.example",
    ),
    (
        "bounce-mc.us12_48108381.152121-user=example.net@mail130.atl21.rsgsv.example",
        "bounce-mc.us12_48108381.152377-user=example.net@mail130.atl21.rsgsv.example",
    ),
    (
        "bounces+848413-634f-user=example.net@sgmail.github.example",
        "bounces+848413-7a01-user=example.net@sgmail.github.example",
    ),
    (
        "bounce+a1b2c3.4d5e6f-user=example.net@mg.example.com",
        "bounce+ffb2c3.4d5eaa-user=example.net@mg.example.com",
    ),
    (
        "msprvs1=17582z2tky0dk=bounces-9178@spmailt.example",
        "msprvs1=17590aBcDeFgH=bounces-9178@spmailt.example",
    ),
    (
        "support=example.com__9m4vlv27x6v0rxwe@mmh2xurvokdh.a-hu5amac.na63.bnc.salesforce.example",
        "support=example.com__0-4faoc4mc7i68gc@5hnj2mufr87e4htv.a-hu5amac.na63.bnc.salesforce.example",
    ),
    (
        "bounce-648_HTML-126963812-4522-7327404-650445@bounce.s7.exacttarget.example",
        "bounce-648_HTML-126963999-4530-7327404-650999@bounce.s7.exacttarget.example",
    ),
    (
        "user+SRS=aBcDe=F1=example.com=alice@tenant.onmicrosoft.example",
        "user+SRS=zYxWv=F2=example.com=alice@tenant.onmicrosoft.example",
    ),
    (
        "SRS0=guWu=HQ=example.com=alice@mail.example.net",
        "SRS0=5cDK=TQ=example.com=alice@mail.example.net",
    ),
    ("SRS0+S7Ai=4B=example.com=alice@fwd.example", "SRS0+aB3/=4C=example.com=alice@fwd.example"),
    (
        "SRS0=abcd=ZG=authority.example=prvs=123456789a=noreply@forwarder.example",
        "SRS0=efgh=ZH=authority.example=prvs=1987654321=noreply@forwarder.example",
    ),
    (
        "SRS0=fGv9=BC=a.example.com=bounce-4IDNASXYtY_FG21s4IoV1XzCfCtHkb2RZY_qdGZ8Q-6A@email.example.com",
        "SRS0=aGv9=BD=a.example.com=bounce-5JEOBTYZuZ_GH32t5JpW2YaDgDuIlc3SAZ_reHA9R-7B@email.example.com",
    ),
    (
        "SRS1=AAAA=fwd1.example==HHHH=TT=example.com=alice@fwd2.example",
        "SRS1=BBBB=fwd1.example==JJJJ=TU=example.com=alice@fwd2.example",
    ),
    ("prvs=0123456789=alice@example.com", "prvs=1abcdef012=alice@example.com"),
    ("prvs=alice=0123456789@example.com", "prvs=alice=1abcdef012@example.com"),
    ("btv1==489040e8aa2==alice@example.com", "btv1==983c44cee94==alice@example.com"),
    ("alice+prvs=0123456789@example.com", "alice+prvs=1abcdef012@example.com"),
    (
        "3nNcYXwMKCq0fPjTbbTYR.PbZdRZh-QRiRYabaTah.beT@flex--scw.bounces.google.example",
        "3LvEPaAwKCpcE12985JK561E7FF7C5.3FDH5DL-45M5CEFE7EL.FI7@flex--scw.bounces.google.example",
    ),
    (
        "202503241354076f0c20a445c047ccb39cd7b48310p0na-C39ZAK9DXFBM50@bounces.amazon.example",
        "20190224101108c7052c9bcc7f4abb90251e862cd0p0na-C19WUOQGH538F3@bounces.amazon.example",
    ),
    (
        "b05372b0afduser.name.0610=gmail.example@bounce.twitter.example",
        "b013614b853user.name.0610=gmail.example@bounce.twitter.example",
    ),
    (
        "059-VFZ-834.0.1100893.0.0.34454.9.416187631@em-sj-77.mktomail.example",
        "059-VFZ-834.0.1100999.0.0.34501.9.416187631@em-sj-77.mktomail.example",
    ),
    (
        "1axca06p9dhadejfcj89bda3kxmimwrspi50nd@bf01x.hubspotemail.example",
        "1axbzngfdqrw3qttkekmmouflkgrjnzptdk8su@bf01x.hubspotemail.example",
    ),
    (
        "bounces-133768474-user=example.net@gt.d.sender-sib.example",
        "bounces-133768999-user=example.net@gt.d.sender-sib.example",
    ),
    (
        "bounce-411654-17-29016-user=example.net@s4.acemsrvg.example",
        "bounce-411654-18-29016-user=example.net@s4.acemsrvg.example",
    ),
    (
        "b.179.46731.1d401ac35ffe33fb@lists.example.org",
        "b.180.46999.9e871bd36aae44ac@lists.example.org",
    ),
    (
        "list-return-123-user=example.net@example.org",
        "list-return-124-user=example.net@example.org",
    ),
    (
        "linux-kernel+bounces-123456-user=example.net@vger.kernel.example",
        "linux-kernel+bounces-123999-user=example.net@vger.kernel.example",
    ),
    ("owner-mutt-users-M25356@mutt.example", "owner-mutt-users-M25357@mutt.example"),
    ("bounce-197450001@bounce.gr-mail5.example", "bounce-197450777@bounce.gr-mail5.example"),
    (
        "0cc175b9c0f1b6a831c399e269772661@example.com",
        "92eb5ffee6ae2fec3ad71c777531578f@example.com",
    ),
    (
        "sl.lmycyibrgq2tqmrwgyztonrmeazdgnrxgy2tsxi.qwertz@simplelogin.example",
        "sl.lmycyibsgq2tqmrwgyztonrmeazdgnrxgy2zzzz.asdfgh@simplelogin.example",
    ),
    (
        "list-return-123-user.name=example.net@l.example",
        "list-return-99-user.name=example.net@l.example",
    ),
    (
        "users-return-4711-joe=example.com@tomcat.apache.example",
        "users-return-4712-joe=example.com@tomcat.apache.example",
    ),
    (
        "bounce-5BCF9BBF4B0EC5D72540EF23F30FEDED-user=example.com@cm20.example",
        "bounce-1ACF9BBF4B0EC5D72540EF23F30FED00-user=example.com@cm20.example",
    ),
    ("b.1.2.00aa11bb22cc33dd@civi.example.org", "b.9.12345.ffaa11bb22cc33d9@civi.example.org"),
    (
        "s-1d8x3q8e5bkzl9vn8gsl1ulb7gbe9cfm9dfzpb@bounce.linked.example",
        "s-2e7y4r9f6calm0wo9htm2vmc8hcf0dgn0egaqc@bounce.linked.example",
    ),
    (
        "6dd8b5a3.AMQAACwAAAAAAAAAAAAAAR4AAAAAAB8AAAAAAAAAAAC_rgBYxTLB7hsuSMWiT6ie5hzHJPj8eQAAvw0@bnc3.mailjet.example",
        "7ed8b5a3.AMQAACwAAAAAAAAAAAAAAR4AAAAAAB8AAAAAAAAAAAC-rgBYxTLB7hsuSMWiT6ie5hz_JPj8eQAAvw1@bnc3.mailjet.example",
    ),
    (
        "AU9vC8XVfRF6FMHIJ4gJGVA==_1125533473021_qWq0UPfQEey7WvoWPgYTfQ==@in.constant.example",
        "BU9vC8XVfRF6FMHIJ4gJGVA==_1125533473999_rWq0UPfQEey7WvoWPgYTfQ==@in.constant.example",
    ),
    (
        "010001876a1b2c3d-4e5f6a7b-8c9d-4e0f-1a2b-3c4d5e6f7a8b-000000@bounces.shop.example",
        "010001876a1b2c3e-ae5f6a7b-8c9d-4e0f-1a2b-3c4d5e6f7a8c-000000@bounces.shop.example",
    ),
    (
        "sentto-1234-567-1234567890-user=example.com@returns.groups.example",
        "sentto-1234-568-1234569999-user=example.com@returns.groups.example",
    ),
    ("bounce-1234567-7654321@lists.example.org", "bounce-1234568-7654321@lists.example.org"),
    ("bounce_7a8b9c.1f2e3d@zoho.example", "bounce_8a8b9c.2f2e3d@zoho.example"),
    (
        "550e8400-e29b-41d4-a716-446655440000@push.example",
        "123e4567-e89b-12d3-a456-426614174000@push.example",
    ),
    (
        "news-550e8400-e29b-41d4-a716-446655440000@push.example",
        "news-123e4567-e89b-12d3-a456-426614174000@push.example",
    ),
    (
        "a1b2c3d4.0f9e8d7c.12345678.90abcdef@x.example",
        "b1b2c3d4.1f9e8d7c.22345678.a0abcdef@x.example",
    ),
    (
        "3kZ9WYgoTBXcjkVkTgRnacfgZigf.YgeTgdZgd@trix.bounces.google.example",
        "3Ab1cDgoEBXcjkVkTgRnaqrsZigf.YgeTgxZgd@trix.bounces.google.example",
    ),
    (
        "3-_abYgoTBXcjkVkTgRna.cfg-Zigf@gaia.bounces.google.example",
        "3x9cbYgoTBXcjkVkTgRna.cfg-Zigf@gaia.bounces.google.example",
    ),
    ("SRS0-HHH=TT=orig.example=user@f.example", "SRS0-III=UU=orig.example=user@f.example"),
    (
        "SRS0=xY4z=2K=lists.example=list-return-12-joe=dom.example@f.example",
        "SRS0=aB4z=3K=lists.example=list-return-13-joe=dom.example@f.example",
    ),
    ("bounces+SRS=8lR7k=9W@tenant.example", "bounces+SRS=9lR7k=9X@tenant.example"),
    (
        "user+SRS=aBcDe=F1=example.com=prvs=0123456789=alice@t.example",
        "user+SRS=aBcDf=F2=example.com=prvs=1123456789=alice@t.example",
    ),
    ("owner-linux-kernel-M12@l.example", "owner-linux-kernel-M12345@l.example"),
    ("prvs=alice=1234abcdef@example.com", "alice@example.com"),
    (
        "jobs_123456_20240102_user=example.com@b.example",
        "jobs_123457_20240103_user=example.com@b.example",
    ),
    (
        "no-reply=shop.example__1abcdefghij2k3lm@x9k2m4q7w1zt.b-1234abcd.eu12.bnc.sf.example",
        "no-reply=shop.example__9-bcdefghij2k3ln@q1w2e3r4t5y6.b-1234abcd.eu12.bnc.sf.example",
    ),
    ("bounces-9f86d081884c7d65-news@x.example", "bounces-1f86d081884c7d66-news@x.example"),
    (
        "0100018b9e3f1a2c.7d1c9f6a4b3e.000000@x.example",
        "0100018b9e3f1a2d.8d1c9f6a4b3e.000000@x.example",
    ),
    ("7hgf3k2m9q8w1x5z6c4v0b3n@x.example", "8igf3k2m9q8w1x5z6c4v0b3p@x.example"),
    (
        "123-ABC-456.0.200100.0.0.5000.9.1234567@em.mkto.example",
        "123-ABC-456.0.200101.0.0.5001.9.1234568@em.mkto.example",
    ),
    (
        "a0b1c2d3e4fjoe.doe=gmail.example@bounce.tw.example",
        "a9b8c7d6e5fjoe.doe=gmail.example@bounce.tw.example",
    ),
    ("sl.nfxgk3tuon2ws4rbmvxgc.abcde@sl.example", "sl.nfxgk3tuon2ws5rbmvxgd.zyxwv@sl.example"),
    ("msprvs1=18000aBc9dEfG=bounces-1-2@s.example", "msprvs1=18001xBc9dEfG=bounces-1-2@s.example"),
    (
        "0102018f1a2b3c4d-11111111-2222-3333-4444-555555555555-000000@eu.example",
        "0102018f1a2b3c4e-aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee-000000@eu.example",
    ),
    (
        "bounces+1234567-ab12-joe=example.net@em1234.x.example",
        "bounces+1234567-cd34-joe=example.net@em1234.x.example",
    ),
    (
        "bounce-10_HTML-999-12-345-6@bounce.s1.et.example",
        "bounce-11_HTML-998-13-345-7@bounce.s1.et.example",
    ),
    (
        "bounces+848413-634f-user=example.net@sg.example",
        "bounces+1-ffff-user=example.net@sg.example",
    ),
    ("dated-1700000000.abc123-joe@x.example", "dated-1700000999.bcd124-joe@x.example"),
    ("joe-dated-1700000000.1a2b3c@x.example", "joe-dated-1700000999.2b3c4d@x.example"),
    ("errors-12345@x.example", "errors-12399@x.example"),
    ("msgid-1a2b3c4d5e@x.example", "msgid-2b3c4d5e6f@x.example"),
    ("verp-99-1234-joe=example.com@x.example", "verp-98-1235-joe=example.com@x.example"),
    ("bounces-77-abcd1234-list@x.example", "bounces-78-1bcd1234-list@x.example"),
    ("returns-2024.55@x.example", "returns-2025.56@x.example"),
    (
        "SRS1=AAAA=fwd1.example=-HH=TT=example.com=alice@f2.example",
        "SRS1=BBBB=fwd1.example=+JJ=TU=example.com=alice@f2.example",
    ),
    (
        "SRS0=a=b=one.example=SRS0=c=d=two.example=bob@f.example",
        "SRS0=e=f=one.example=SRS0=g=h=two.example=bob@f.example",
    ),
    (
        "SRS0=a=b=one.example=btv1==0123456789a==bob@f.example",
        "SRS0=c=d=one.example=btv1==9876543210f==bob@f.example",
    ),
    (
        "SRS0=a=b=one.example=bounces+12-3=x@f.example",
        "SRS0=c=d=one.example=bounces+13-4=x@f.example",
    ),
    ("prvs=0123456789=bounce-12@x.example", "prvs=1123456789=bounce-13@x.example"),
    ("prvs=0123456789=joe+news@x.example", "joe@x.example"),
    ("joe+prvs=0123456789@x.example", "joe@x.example"),
    ("google-groups+bncBAABCDE3f@groups.example", "google-groups+bncCBBBCDE4g@groups.example"),
    ("notification+kjdmpj-ds@book.example", "notification+zj4oa9@book.example"),
    ("c19wuoqgh538f3-news@x.example", "c39zak9dxfbm50-news@x.example"),
    ("news-4f8a1c9e2b7d6a50@x.example", "news-5a8a1c9e2b7d6a51@x.example"),
    (
        "0123456789abcdef0123456789abcdef01234567@x.example",
        "f123456789abcdef0123456789abcdef01234560@x.example",
    ),
    ("pm-a1b2c3d4e5f60718@pm.example", "pm-b1b2c3d4e5f60719@pm.example"),
    ("12.34.56.78.90.12.34.56@x.example", "12.35.57.79.91.13.35.57@x.example"),
    (
        "bounce-1d2f3a.4b5c6d-ann=example.com@mg.example",
        "bounce-2d2f3a.5b5c6d-ann=example.com@mg.example",
    ),
    ("bounces-9-0a1b-ann=example.com@mg.example", "bounces-8-f001-ann=example.com@mg.example"),
    ("owner-users-M1@x.example", "owner-users-M999999@x.example"),
    ("mailer-17.1a2b3c4d5e6f7@x.example", "mailer-18.2a2b3c4d5e6f8@x.example"),
    # Short tags at domains of bounces, plain and in a wrapper.
    ("a1b2c3d4e5f6g7h8@bounces.example.com", "9f86d081884c7d65@bounces.example.com"),
    ("a1b2c3d4e5f6@bounces.example.com", "prvs=0123456789=f6e5d4c3b2a1@bounces.example.com"),
    ("111519677@bounces.example.com", "422295876@bounces.example.com"),
    ("b-900692525-47375@bounces.example.com", "b-964492201-34455@bounces.example.com"),
    ("news-649827699@bounces.example.com", "news-649827700@bounces.example.com"),
    # A domain of bounces inside SRS.
    (
        "SRS0=hYeM=FY=flex--scw.bounces.google.example=3nNcYXwMKCq0fPjTbbTYR.PbZdRZh-QRiRYabaTah"
        ".beT@fwd.example",
        "SRS0=mzzP=3M=flex--scw.bounces.google.example=3LvEPaAwKCpcE12985JK561E7FF7C5.3FDH5DL-45"
        "M5CEFE7EL.FI7@fwd.example",
    ),
    (
        "user+SRS=hYeM1=FY=bounces.amazon.example=202503241354076f0c20a445c047ccb39cd7b48310p0na"
        "-C39ZAK9DXFBM50@t.onmicrosoft.example",
        "user+x+SRS=mzzP1=3M=bounces.amazon.example=20190224101108c7052c9bcc7f4abb90251e862cd0p0"
        "na-C19WUOQGH538F3@t.onmicrosoft.example",
    ),
    (
        "SRS1=AAAA=fwd1.example==HHHH=TT=bounces.example.com=111519677@fwd2.example",
        "SRS1=BBBB=fwd1.example==JJJJ=TU=bounces.example.com=422295876@fwd2.example",
    ),
]

# Two senders, however alike: numbers that are names, years, telephones; and what stays of a sender
# whose tags are folded.
TWO = [
    (
        "user+SRS=aBcDe=F1=example.com=alice@tenant.onmicrosoft.example",
        "user+SRS=zYxWv=F2=example.org=bob@tenant.onmicrosoft.example",
    ),
    (
        "SRS0=guWu=HQ=example.com=alice@mail.example.net",
        "SRS0=guWu=HQ=example.com=bob@mail.example.net",
    ),
    ("order-10234@shop.example.com", "order-10235@shop.example.com"),
    ("route66@example.com", "route67@example.com"),
    ("+49301234567@sms.example.com", "+49301234568@sms.example.com"),
    ("fax=49301234567@fax.example", "fax=49301234568@fax.example"),
    ("alice%example.com@relay.example", "bob%example.com@relay.example"),
    ("order-10234@s", "order-10235@s"),
    ("route66@s", "route67@s"),
    ("john.smith1984@s", "john.smith1985@s"),
    ("a1b2@s", "a1b3@s"),
    ("info2@s", "info3@s"),
    ("team-2024@s", "team-2025@s"),
    ("4711@s", "4712@s"),
    ("356938035643809@s", "356938035643810@s"),
    ("+491234567@s", "+491234568@s"),
    ("0049301234567@s", "0049301234568@s"),
    ("fax=49301234567@s", "fax=49301234568@s"),
    ("fax=+4930@s", "fax=+4931@s"),
    ("alice%example.com@s", "bob%example.com@s"),
    ("alice%a1.example@s", "alice%a2.example@s"),
    ("john_19851012@s", "john_19851013@s"),
    ("06.12.34.56.78@s", "06.12.34.56.79@s"),
    ("192.0.2.1@s", "192.0.2.2@s"),
    ("web2print4you@s", "web3print4you@s"),
    ("sales.region4@s", "sales.region5@s"),
    ("ticket.12345@s", "ticket.12346@s"),
    ("rt-4711@s", "rt-4712@s"),
    ("case_00123@s", "case_00124@s"),
    ("mx1.prod2@s", "mx1.prod3@s"),
    ("sensor-a1b2c3@s", "sensor-a1b2c4@s"),
    ("70b3d57ed0001a2b@s", "70b3d57ed0001a2c@s"),
    ("00-1a-2b-3c-4d-5e@s", "00-1a-2b-3c-4d-5f@s"),
    ("room101@bounce.example.com", "room102@bounce.example.com"),
    ("alice@srv1abc2def3ghi.eu.example.com", "alice@srv9abc2def3ghi.eu.example.com"),
    ("bounces-user1=example.net@l", "bounces-user2=example.net@l"),
    ("list-return-5-ann=example.net@l", "list-return-5-bob=example.net@l"),
    ("user+SRS=a=b=example.com=alice@t", "user+SRS=a=b=example.com=bob@t"),
    ("other+SRS=a=b=example.com=alice@t", "user+SRS=a=b=example.com=alice@t"),
    ("SRS0=a=b=example.com=alice@t", "SRS0=a=b=example.org=alice@t"),
    ("SRS1=a=f1.example==b=c=d.example=alice@t", "SRS1=a=f2.example==b=c=d.example=alice@t"),
    ("prvs=0123456789=alice@t", "prvs=0123456789=bob@t"),
    ("owner-mutt-users@m", "owner-mutt-dev@m"),
    ("owner-class-2024@m", "owner-class-2025@m"),
    ("owner-m25@m", "owner-m26x@m"),
    ("newsletter-a@bounce.example.com", "newsletter-b@bounce.example.com"),
    ("bounce-list2@x", "bounce-list3@x"),
    ("noreply@a1.example.com", "noreply@a2.example.com"),
    ("x.y@mmh2xurvokdh.example.com", "x.y@5hnj2mufr87e4htv.example.com"),
    ("bounce-1@mmh2xurvokdh.example.com", "bounce-1@5hnj2mufr87e4htv.example.com"),
    ("bounce-1@mmh2xurvokdh.co.example", "bounce-1@5hnj2mufr87e4htv.co.example"),
    ("vw-golf-2.0-tdi@s", "vw-golf-1.9-tdi@s"),
    ("support=example.com@s", "support=example.org@s"),
    ("k9-unit-7@s", "k9-unit-8@s"),
    ("feed-facade@s", "feed-decade@s"),
    ("abc123def456@s", "abc123def457@s"),
    ("invoice-2024-0001@s", "invoice-2024-0002@s"),
    ("anna-maria.1985@s", "anna-maria.1986@s"),
    ("3com-support@s", "4com-support@s"),
    ("7eleven.store12345@s", "7eleven.store12346@s"),
    ("u2fan@s", "u3fan@s"),
    ("h2o.lab@s", "h3o.lab@s"),
    ("c3po.r2d2@s", "c3po.r2d3@s"),
    ("iso9001-2015@s", "iso9001-2016@s"),
    ("rfc5321.sec4@s", "rfc5321.sec5@s"),
    ("apt.4b-building.7c@s", "apt.4b-building.7d@s"),
    ("12345.67890@s", "12345.67891@s"),
    ("2024.01.02@s", "2024.01.03@s"),
    ("/c=de/a=400net/s=smith@x", "/c=de/a=400net/s=jones@x"),
    ("christopher.johnson1984smith2@s", "christopher.johnson1985smith2@s"),
    ("alice+x@s", "bob+x@s"),
    ("alice@one.example", "alice@two.example"),
    ("bounce-1@one.example", "bounce-1@two.example"),
    ("bounce-1@a.one.example", "bounce-1@b.one.example"),
    ("bounce-1@mail1.eu.one.example", "bounce-1@mail2.eu.one.example"),
    (
        "support=example.com__9m4vlv27x6v0rxwe@a.na63.bnc.one.example",
        "support=example.com__9m4vlv27x6v0rxwe@a.na63.bnc.two.example",
    ),
    ("sl.alice.smith@x.example", "sl.bob.smith@x.example"),
    ("059-VFZ-834.0.1.0.0.3.9.4@x.example", "059-VFZ-835.0.1.0.0.3.9.4@x.example"),
    ("news__archive1@x.example", "news__archive2@x.example"),
    ("msprvs1=17582z2tky0dk=alice@x.example", "msprvs1=17582z2tky0dk=bob@x.example"),
    # Plus addressing before Exchange's SRS.
    (
        "user+x+SRS=aBcDe=F1=example.com=alice@tenant.onmicrosoft.example",
        "user+x+SRS=zYxWv=F2=example.org=bob@tenant.onmicrosoft.example",
    ),
    # Telephone numbers as they are written.
    ("FAX=+1-202-555-7622@fax.example", "FAX=+1-202-555-7623@fax.example"),
    ("FAX=+12025557622/T33S=1@fax.example", "FAX=+12025557623/T33S=1@fax.example"),
    ("sms=+44.20.7946.0001@sms.example", "sms=+44.20.7946.0002@sms.example"),
    # Exchange's encapsulated addresses.
    (
        "IMCEAEX-_o=Org_ou=Exchange+20Administrative+20Group_cn=Recipients_cn=Alice@x.example",
        "IMCEAEX-_o=Org_ou=Exchange+20Administrative+20Group_cn=Recipients_cn=Bob@x.example",
    ),
    ("IMCEAINVALID-alice+40a+2Eexample@x.example", "IMCEAINVALID-alice+40b+2Eexample@x.example"),
    # Numbers that people have, where users are no tags, and short ones where they are.
    ("123456789@qq.example", "123456788@qq.example"),
    ("list-12@bounces.example.com", "list-13@bounces.example.com"),
    # The domain inside SRS is no domain of bounces, though the forwarder's is.
    (
        "SRS0=hYeM=FY=example.com=111519677@bounces.example.net",
        "SRS0=mzzP=3M=example.com=422295876@bounces.example.net",
    ),
]
