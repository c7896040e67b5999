package store

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// keepAlive is how a silent server is noticed, on a connection that waits for
// it as on one that is idle.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 2 * time.Second, Interval: time.Second, Count: 3}

var errCut = errors.New("the connection was cut")

// dial connects to a server, with bounds on its silence.
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	if address == (cutAddr{}).String() {
		return nil, errCut
	}
	c, err := (&net.Dialer{Timeout: connectTimeout, KeepAliveConfig: keepAlive, Control: boundUnconfirmed}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &serverConn{Conn: c}, nil
}

// dialPool is dial for the connections of the pool. One that is not established when
// all are renewed is given up: it would keep a place for as long as it hangs.
func (e *postgresEngine) dialPool(ctx context.Context, network, address string) (net.Conn, error) {
	now := e.connecting.Load()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(now, cancel)
	defer stop()
	c, err := dial(ctx, network, address)
	if err == nil {
		own := c.(*serverConn)
		own.connected = context.AfterFunc(now, func() { own.Conn.Close() })
	}
	return c, err
}

// connected says that a connection of the pool is established.
func connected(c *pgx.Conn) {
	if own := server(c); own != nil && own.connected != nil {
		own.connected()
	}
}

// serverConn is a connection that can be cut: closed without a word to its
// server. pgx would otherwise, on a connection of its own, ask that to cancel what
// it does, and keep the connection's place in the pool until it has.
type serverConn struct {
	net.Conn
	cut       atomic.Bool
	connected func() bool // nil if nobody waits for it
}

// RemoteAddr returns an address to which nobody connects once the connection is
// cut.
func (c *serverConn) RemoteAddr() net.Addr {
	if c.cut.Load() {
		return cutAddr{}
	}
	return c.Conn.RemoteAddr()
}

type cutAddr struct{}

func (cutAddr) Network() string { return "tcp" }
func (cutAddr) String() string  { return "cut" }

// server returns a connection's own connection; nil if it is not of dial.
func server(c *pgx.Conn) *serverConn {
	conn := c.PgConn().Conn()
	if encrypted, ok := conn.(*tls.Conn); ok {
		conn = encrypted.NetConn()
	}
	own, _ := conn.(*serverConn)
	return own
}

// cut cuts a connection. It is safe for concurrent use.
func cut(c *pgx.Conn) {
	if own := server(c); own != nil {
		own.cut.Store(true)
		own.Conn.Close()
		return
	}
	c.PgConn().Conn().Close()
}
